"""What every decoder has: matrices at both ends, and steps of fixed shapes that a CUDA graph can capture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch.nn.functional import linear, rms_norm

from engram_exp.decoder.shape import DecoderShape
from engram_exp.machine.placement import Placement

Shape = TypeVar("Shape", bound=DecoderShape)


class Decoder(ABC, Generic[Shape]):
    """Random weights on one device.

    Args:
        shape: its sizes.
        sequences: that its steps have at most.
        dtype: of weights, hidden states and cache.
        seed: of the weights.
        placement: where it is.
    """

    def __init__(self, shape: Shape, sequences: int, dtype: torch.dtype, seed: int, placement: Placement) -> None:
        self.shape, self.sequences, self.dtype, self.placement = shape, sequences, dtype, placement
        self.generator = torch.Generator(placement.device).manual_seed(seed)
        self.embedding = self.random(shape.vocab_size, shape.hidden_size)
        self.head = self.output()
        self.norm = torch.ones(shape.hidden_size, dtype=dtype, device=placement.device)

    def output(self) -> torch.Tensor:
        """The output's matrix [V, C], of the tokens that are chosen from here."""
        shape = self.shape
        return self.embedding if shape.tied else self.random(shape.vocab_size, shape.hidden_size)

    def random(self, *shape: int, std: float | None = None) -> torch.Tensor:
        """Normal values; a matrix [n, k] keeps the variance of what it is multiplied with unless `std` is given."""
        values = torch.empty(shape, dtype=self.dtype, device=self.placement.device)
        return values.normal_(std=shape[-1] ** -0.5 if std is None else std, generator=self.generator)

    @abstractmethod
    def step(self, sequences: int, tokens: int) -> Step:
        """A step of so many tokens of each of some sequences."""


class Step(ABC):
    """L tokens of each of B sequences, T = B * L in all, go through a decoder.

    One token of each is a decode step, more are a prompt. Shapes are fixed and nothing waits for the device, so that
    calls can be captured in one CUDA graph or in several, cut at any layer, once each has run before. What `begin` and
    `end` return is kept for the next call; what `run` returns is new memory, which in a graph is the graph's.

    Args:
        decoder: whose weights it uses.
        sequences, tokens: B and L.

    Raises:
        ValueError: more sequences than the decoder was built for.
    """

    def __init__(self, decoder: Decoder, sequences: int, tokens: int) -> None:
        if not 1 <= sequences <= decoder.sequences:
            raise ValueError(f"a step of {sequences} sequences; the decoder was built for 1 to {decoder.sequences}")
        self.decoder, self.sequences, self.tokens = decoder, sequences, tokens
        self.hidden = decoder.placement.empty(sequences * tokens, decoder.shape.hidden_size, dtype=decoder.dtype)
        self.ids = decoder.placement.empty(sequences * tokens, dtype=torch.int64)
        self.chosen = decoder.placement.empty(sequences, dtype=torch.int64)

    def begin(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings [T, C] of token ids, int64 [B, L]; ids beyond the vocabulary, of another model's tokenizer,
        start again at its beginning."""
        known = torch.remainder(ids.view(-1), self.decoder.shape.vocab_size, out=self.ids)
        return torch.index_select(self.decoder.embedding, 0, known, out=self.hidden)

    def run(self, first: int, end: int, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state [T, C] behind layer `end` - 1, from that before layer `first`.

        Raises:
            IndexError: layers that are not built.
        """
        layers = self.decoder.shape.layers
        if not 0 <= first <= end <= layers:
            raise IndexError(f"layers {first} to {end} of a decoder in which {layers} are built")
        return self.through(range(first, end), hidden)

    @abstractmethod
    def through(self, layers: range, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state [T, C] behind some layers."""

    def end(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest next token of each sequence, int64 [B], from the hidden state [T, C] behind the last layer."""
        decoder = self.decoder
        last = hidden.view(self.sequences, self.tokens, -1)[:, -1]
        normed = rms_norm(last, (decoder.shape.hidden_size,), decoder.norm, decoder.shape.norm_eps)
        return torch.argmax(linear(normed, decoder.head), dim=-1, out=self.chosen)
