"""Every rank reads its own columns, and all rows are gathered everywhere."""

from __future__ import annotations

import torch

from engram_exp.machine.ranks import all_gather
from engram_exp.stage import Load
from engram_exp.steps.exchange.all_ids import AllIds
from engram_exp.steps.exchange.step import flat
from engram_exp.vocabulary import PEERS


class AllGatherExchange(AllIds):
    """All-gather of rows. Where batches are each rank's own, row ids come first, and rows of all batches everywhere."""

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Rows of the other ranks arrive, of all batches; this rank's are read, and what is asked for is written."""
        asking = load.among.asking
        rows = load.geometry.stored_bytes(load.tokens)
        return {PEERS: asking * rows * (1 - 1 / load.among.ranks), load.memory: rows * (1 + asking / load.among.ranks)}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call."""
        asked, own = self.asked_by_all(flat(row_ids))
        rows, most = self.read_own(self.own_ids(asked)), self.shards.most_columns
        shape = len(asked), most, self.row_words
        sent = self.buffer("sent", len(asked) * most * self.row_words, self.words).view(shape)
        sent[:, : rows.shape[1]].copy_(rows)
        found = self.buffer("found", self.ranks.size * sent.numel(), self.words).view(self.ranks.size, *shape)
        all_gather(found, sent, self.ranks.group)
        whole = self.whole(own.stop - own.start)
        for rank, of_rank in enumerate(found):
            whole[:, self.shards.columns_of(rank)] = of_rank[own, : self.shards.number_of_columns(rank)]
        return self.handed_on(len(whole))
