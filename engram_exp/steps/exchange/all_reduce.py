"""Every rank writes zeros for the rows that others hold, and all are added up, as SGLang does."""

from __future__ import annotations

import torch
import torch.distributed as dist

from engram_exp.stage import Load
from engram_exp.steps.exchange.all_ids import AllIds
from engram_exp.steps.exchange.step import Ids, flat
from engram_exp.vocabulary import PEERS


class AllReduceExchange(AllIds):
    """All-reduce of rows, added as whole numbers: the sum of a row and zeros is the row, whatever its bits."""

    takes_rows = True

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """As in a ring: each part of the sum is passed on by all but one rank, and so is the whole; zeros and rows are
        written, and read for the sum."""
        asking = load.among.asking
        rows = asking * load.geometry.stored_bytes(load.tokens)
        return {PEERS: 2 * rows * (1 - 1 / load.among.ranks), load.memory: 2 * rows}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call."""
        asked, own = self.asked_by_all(flat(row_ids))
        if self.own_batches:
            shape = len(asked), self.columns, self.row_words
            summed = self.buffer("summed", len(asked) * self.columns * self.row_words, self.words).view(shape)
        else:
            summed = self.whole(len(asked))
        if self.shards.by_rows:
            self._rows_or_zeros(asked, summed)
        else:
            summed.zero_()
            summed[:, self.own_columns] = self.read_own(self.own_ids(asked))
        dist.all_reduce(summed, group=self.ranks.group)
        if self.own_batches:
            self.whole(own.stop - own.start).copy_(summed[own])
        return self.handed_on(own.stop - own.start)

    def _rows_or_zeros(self, asked: Ids, summed: torch.Tensor) -> None:
        """Of rows that are shared out: those of this rank, and zeros for all others."""
        (span,) = self.shards.spans_of(self.ranks.rank)
        elsewhere = (asked < span.first) | (asked >= span.first + span.rows)
        if not span.rows:
            summed.zero_()
            return
        rows = self.read_own((asked - span.first).masked_fill_(elsewhere, 0))
        torch.where(elsewhere[..., None], torch.zeros((), dtype=rows.dtype, device=rows.device), rows, out=summed)
