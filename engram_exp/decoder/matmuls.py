"""Matrix products of given sizes, which stand in for a decoder that is not here."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from engram_exp.decoder.decoder import Decoder, Step
from engram_exp.decoder.shapes import MatmulShape
from engram_exp.machine.placement import Placement


class MatmulDecoder(Decoder[MatmulShape]):
    """The products of each layer, one after the other; the sum over layers keeps the size of the hidden state."""

    def __init__(self, shape: MatmulShape, sequences: int, dtype: torch.dtype, seed: int, placement: Placement) -> None:
        super().__init__(shape, sequences, dtype, seed, placement)
        self.layers = [list(map(self.product, range(len(shape.products)))) for _ in range(shape.layers)]
        for products in self.layers:
            products[-1] *= shape.layers**-0.5

    def product(self, number: int) -> torch.Tensor:
        """The matrix [n, k] of one of a layer's products."""
        return self.random(*self.shape.products[number])

    def step(self, sequences: int, tokens: int) -> MatmulStep:
        """A step of so many tokens of each of some sequences; it is the same whether they are a prompt or not."""
        return MatmulStep(self, sequences, tokens)


class MatmulStep(Step):
    """A step of the stand-in."""

    decoder: MatmulDecoder

    def through(self, layers: range, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state [T, C] behind some layers."""
        sources = self.decoder.shape.sources
        for layer in layers:
            made = [hidden]
            *products, last = self.decoder.layers[layer]
            for product, source in zip(products, sources, strict=False):
                made.append(linear(made[source][:, : product.shape[1]], product))
            hidden = torch.addmm(hidden, made[sources[-1]][:, : last.shape[1]], last.t())
        return hidden
