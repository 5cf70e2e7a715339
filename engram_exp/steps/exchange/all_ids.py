"""Exchanges in which every rank learns what all of them ask for."""

from __future__ import annotations

import torch

from engram_exp.machine.ranks import all_gather
from engram_exp.steps.exchange.step import Exchange, Ids, begins


class AllIds(Exchange):
    """Where batches are each rank's own, their row ids come first."""

    def asked_by_all(self, row_ids: Ids) -> tuple[Ids, slice]:
        """Row ids [tokens of all ranks, H] of all who ask, one rank behind the other, and where this one's stand among
        them: [T, H] itself where all ask for the same."""
        tokens = len(row_ids)
        if not self.own_batches:
            return row_ids, slice(0, tokens)
        sizes = self.tokens_of_ranks(tokens)
        places, most = begins(sizes), max(sizes)
        padded = self.buffer("padded_ids", most * self.columns, row_ids.dtype).view(most, -1)
        padded[:tokens].copy_(row_ids)
        found = self.buffer("ids_of_ranks", self.ranks.size * most * self.columns, row_ids.dtype)
        found = found.view(self.ranks.size, most, self.columns)
        all_gather(found, padded, self.ranks.group)
        if min(sizes) == most:
            return found.view(-1, self.columns), places[self.ranks.rank]
        together = self.buffer("ids_together", sum(sizes) * self.columns, row_ids.dtype).view(-1, self.columns)
        torch.cat([ids[:size] for ids, size in zip(found, sizes, strict=True)], out=together)
        return together, places[self.ranks.rank]
