"""Row ids go to the ranks that hold the rows, and the rows come back."""

from __future__ import annotations

import torch
import torch.distributed as dist

from engram_exp.stage import Load
from engram_exp.steps.exchange.step import Exchange, begins, flat
from engram_exp.vocabulary import PEERS


class AllToAllExchange(Exchange):
    """Two all-to-alls, of ids and of rows, of sizes that are known beforehand: nothing is waited for on the host."""

    needs_own = True

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Rows of other ranks arrive; as many are read here for them, and what is asked for is written."""
        rows = load.geometry.stored_bytes(load.tokens)
        return {PEERS: rows * (1 - 1 / load.among.ranks), load.memory: 2 * rows}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call."""
        ids = flat(row_ids)
        tokens, size = self.tokens_of_ranks(len(ids)), self.ranks.size
        own_columns = self.shards.number_of_columns(self.ranks.rank)
        sent = [len(ids) * self.shards.number_of_columns(rank) for rank in range(size)]
        received = [number * own_columns for number in tokens]
        asked = self.buffer("asked", sum(received), ids.dtype)
        dist.all_to_all_single(asked, self._sorted_by_rank(ids, sent), received, sent, group=self.ranks.group)
        rows = self.read_own(asked.view(-1, own_columns) if own_columns else asked.view(0, 0)).reshape(-1)
        found = self.buffer("found", sum(sent) * self.row_words, self.words)
        to_here, from_here = ([self.row_words * number for number in sizes] for sizes in (sent, received))
        dist.all_to_all_single(found, rows, to_here, from_here, group=self.ranks.group)
        whole = self.whole(len(ids))
        for rank, place in enumerate(begins(sent)):
            columns = self.shards.columns_of(rank)
            of_rank = found[place.start * self.row_words : place.stop * self.row_words]
            whole[:, columns] = of_rank.view(len(ids), self.shards.number_of_columns(rank), self.row_words)
        return self.handed_on(len(ids))

    def _sorted_by_rank(self, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Ids within the shares of those who have their rows, one rank behind the other."""
        sent = self.buffer("sent", sum(sizes), ids.dtype)
        for rank, place in enumerate(begins(sizes)):
            columns = self.shards.columns_of(rank)
            found = ids[:, columns]
            torch.add(found, self.shifts_as(ids.dtype)[columns], out=sent[place].view(found.shape))
        return sent
