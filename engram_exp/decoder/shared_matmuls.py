"""A rank's part of matrix products that stand in for a decoder."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.functional import linear, rms_norm

from engram_exp.decoder.matmuls import MatmulDecoder, MatmulStep
from engram_exp.decoder.tensor_parallel import MADE, READ, MatmulShare, spans_of
from engram_exp.machine.placement import Placement
from engram_exp.machine.ranks import Ranks, all_gather


class SharedMatmulDecoder(MatmulDecoder):
    """This rank's part of each product, and of the output's matrix; all have the whole embedding.

    Args:
        shape: of the share.
        sequences, dtype, seed, placement: as every decoder has them.
        ranks: that have the other shares. Its sums go through a group of their own: exchanges of rows may be under way
            beside it, and two of one group are never at a time.
    """

    shape: MatmulShare

    def __init__(
        self, shape: MatmulShare, sequences: int, dtype: torch.dtype, seed: int, placement: Placement, ranks: Ranks
    ) -> None:
        self.rank, self.size, self.group = ranks.rank, ranks.size, ranks.compute_group
        self.spans = spans_of(shape.of, ranks.size)
        self.first_row = shape.vocab_size * self.rank // self.size
        super().__init__(shape, sequences, dtype, seed, placement)

    def output(self) -> torch.Tensor:
        """This rank's rows of the output's matrix. What is drawn as a whole is given back before layers are drawn:
        where these fill the memory, it would not fit beside them."""
        end_row = self.shape.vocab_size * (self.rank + 1) // self.size
        own = super().output()[self.first_row : end_row]
        return own if self.shape.tied else own.clone()

    def product(self, number: int) -> torch.Tensor:
        """This rank's part of one that is drawn as a whole."""
        made, read = self.shape.of.products[number]
        whole = self.random(made, read)
        if self.split[number] == READ:
            own = read // self.size
            return whole[:, self.rank * own : (self.rank + 1) * own].contiguous()
        if self.split[number] != MADE:
            return whole
        parts, first = [], 0
        for own in self.spans[number]:
            parts.append(whole[first + self.rank * own : first + (self.rank + 1) * own])
            first += self.size * own
        return torch.cat(parts)

    @property
    def split(self) -> tuple[str, ...]:
        """How each product is split."""
        return tuple(self.shape.split or ())

    def step(self, sequences: int, tokens: int) -> SharedMatmulStep:
        """A step of so many tokens of each of some sequences, which all ranks run together."""
        return SharedMatmulStep(self, sequences, tokens)


class SharedMatmulStep(MatmulStep):
    """A step of the stand-in, of all ranks together. They must call the same at the same turn, or capture it so."""

    decoder: SharedMatmulDecoder

    def __init__(self, decoder: SharedMatmulDecoder, sequences: int, tokens: int) -> None:
        super().__init__(decoder, sequences, tokens)
        device = decoder.placement.device
        self.best = torch.empty(2, sequences, dtype=torch.float64, device=device)  # logit and token of this rank
        self.of_ranks = torch.empty(decoder.size, 2, sequences, dtype=torch.float64, device=device)

    def through(self, layers: range, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state [T, C] behind some layers, the same on all ranks."""
        decoder = self.decoder
        sources = decoder.shape.sources
        for layer in layers:
            made = [hidden]
            for product, source, split in zip(decoder.layers[layer], sources, decoder.split, strict=True):
                made.append(linear(made[source][:, : product.shape[1]], product))
                if split == READ:
                    dist.all_reduce(made[-1], group=decoder.group)
            hidden = hidden + made[-1]
        return hidden

    def end(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest next token of each sequence, int64 [B], of the likeliest that each rank finds in its part."""
        decoder = self.decoder
        last = hidden.view(self.sequences, self.tokens, -1)[:, -1]
        normed = rms_norm(last, (decoder.shape.hidden_size,), decoder.norm, decoder.shape.norm_eps)
        logits, tokens = linear(normed, decoder.head).max(dim=-1)
        self.best[0].copy_(logits)
        self.best[1].copy_(tokens + decoder.first_row)
        all_gather(self.of_ranks, self.best, decoder.group)
        rank = self.of_ranks[:, 0].argmax(dim=0, keepdim=True)
        return self.chosen.copy_(self.of_ranks[:, 1].gather(0, rank).squeeze(0))
