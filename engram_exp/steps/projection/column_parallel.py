"""Each rank makes its columns of keys and value, and all gather them: tensor parallel, as vLLM's fused `wkv`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import torch

from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.machine.ranks import Ranks, all_gather
from engram_exp.stage import Load
from engram_exp.steps.projection.fused import fastest_norm
from engram_exp.steps.projection.step import FLOAT32_BYTES, Projection, count_weights, weights_bytes
from engram_exp.vocabulary import DEVICE, HOST, PEERS


class ColumnParallelProjection(Projection):
    """A matrix product with this rank's rows of the weights, an all-gather, then all norms in one pass. All ranks call
    it together, with the same embeddings.

    Args:
        weights_share: this rank's, as `ProjectionWeights.share` makes it.
        ranks: that have the others. What they gather goes through a group beside that of the exchanges.
        max_tokens: T, at most.
        placement: of the output.
    """

    built_from = ("weights_share", "ranks", "max_tokens", "placement")
    needs_same: ClassVar[bool] = True  # ranks must ask for the same batches

    def __init__(self, weights_share: ProjectionWeights, ranks: Ranks, max_tokens: int, placement: Placement) -> None:
        self.weights, self.ranks = weights_share, ranks
        self.group = ranks.compute_group
        weight, width = weights_share.weight, (weights_share.hc_mult + 1) * weights_share.hidden_size
        self.kv = placement.empty(max_tokens, width, dtype=weight.dtype)
        between = Placement(placement.device)
        self.own = between.empty(max_tokens, len(weight), dtype=weight.dtype)
        self.found = between.empty(ranks.size * self.own.numel(), dtype=weight.dtype)
        # The bias of all columns has been added by those who made them.
        self.norm = fastest_norm(replace(weights_share, weight=weight.new_empty(width, 0), bias=None))

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Embeddings and this rank's weights read, keys and value written."""
        others = weights_bytes(load.geometry) * (load.among.ranks - 1) // load.among.ranks
        return super().bytes_moved(load) - others

    @classmethod
    def flops(cls, load: Load) -> int:
        """Of this rank's columns."""
        return super().flops(load) // load.among.ranks

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """The same as every projection's of this rank's columns; those of the others arrive."""
        return {**super().work(load), PEERS: load.bytes_of(load.stage.makes) * (1 - 1 / load.among.ranks)}

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Keys and value, this rank's columns of them, and those of all ranks as they arrive."""
        kv = load.bytes_of(load.stage.makes)
        return {load.stage.side: 2 * kv + kv // load.among.ranks}

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """This rank's weights; the host has all of them, and a copy in float32 for the reference."""
        kept = Counter({load.stage.side: weights_bytes(load.geometry) // load.among.ranks})
        kept[HOST] += FLOAT32_BYTES * count_weights(load.geometry)
        kept[HOST] += weights_bytes(load.geometry) if load.stage.side == DEVICE else 0
        return dict(kept)

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [T, M, C] and value [T, C] of embeddings [T, H * D]: views of one buffer, kept for the next call."""
        weights, tokens = self.weights, len(embeddings)
        own, out = self.own[:tokens], self.kv[:tokens]
        if weights.bias is None:
            torch.mm(embeddings, weights.weight.t(), out=own)
        else:
            torch.addmm(weights.bias, embeddings, weights.weight.t(), out=own)
        found = self.found[: self.ranks.size * own.numel()].view(self.ranks.size, *own.shape)
        all_gather(found, own, self.group)
        firsts = range(0, out.shape[1], own.shape[1])
        parts = [of_rank[:, : out.shape[1] - first] for first, of_rank in zip(firsts, found, strict=False)]
        torch.cat(parts, dim=1, out=out)
        kv = out.view(tokens, weights.hc_mult + 1, weights.hidden_size)
        self.norm(kv)
        return kv[:, :-1], kv[:, -1]
