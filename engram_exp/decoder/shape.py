"""What a decoder is, in sizes, and what it costs by them, before any of it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from engram_exp.errors import ConfigError, DoesNotFitError
from engram_exp.vocabulary import DEVICE

if TYPE_CHECKING:
    import torch

    from engram_exp.decoder.decoder import Decoder
    from engram_exp.machine.placement import Placement
    from engram_exp.machine.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class DecoderShape(ABC):
    """The sizes of a decoder; all are keys of the group `decoder`.

    Args:
        layers: how many are built.
        hidden_size: channels C of the hidden state between layers.
        vocab_size: tokens V that the embedding knows, and that are chosen from.
        tied: the embedding is the output's matrix, too.
        norm_eps: of every RMSNorm.
        engram_layers: those of its layers, from 0, that an Engram layer with a table stands in front of; None: those of
            the model that has the tables.

    Raises:
        ConfigError: a size that is not positive, or layers with tables that are not built, come twice or are none.
    """

    layers: int
    hidden_size: int
    vocab_size: int
    tied: bool
    norm_eps: float
    engram_layers: list[int] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"decoder.{field.name}", value, "must be above 0")
        if self.engram_layers is not None:
            self._check_engram_layers(self.engram_layers)

    def _check_engram_layers(self, layers: list[int]) -> None:
        key, beyond = "decoder.engram_layers", [layer for layer in layers if not 0 <= layer < self.layers]
        if not layers or len(set(layers)) < len(layers):
            raise ConfigError(key, layers, "must be one layer at least, each once; null: those of the model")
        if beyond:
            remedy = f"{self.layers} layers are built, 0 to {self.layers - 1}"
            built = f"decoder.layers={max(beyond) + 1} would build it"
            raise ConfigError(key, layers, f"{remedy}; {built}, or name others")

    @property
    @abstractmethod
    def product_values(self) -> int:
        """Values of a layer's matrices: each costs a token a multiplication and an addition."""

    @property
    def norm_values(self) -> int:
        """Values of a layer's norms."""
        return 0

    @property
    def cache_values(self) -> int:
        """Values that a layer keeps of each sequence: keys and values of its context."""
        return 0

    @property
    @abstractmethod
    def scratch_values(self) -> int:
        """Values of each token that live at the same time while a layer runs, about and at most."""

    def attention_flops(self, tokens: int) -> int:
        """Floating-point operations of a layer's attention for one sequence of a step."""
        return 0

    @property
    def output_rows(self) -> int:
        """Tokens of the vocabulary that the output's matrix chooses from here."""
        return self.vocab_size

    @property
    def arriving_values(self) -> float:
        """Values of each token that arrive from other ranks in a layer."""
        return 0.0

    def among(self, ranks: int) -> DecoderShape:
        """What each of so many ranks has of it, where they run the same tokens together.

        Raises:
            ConfigError: it cannot be split.
        """
        remedy = "it is not split over ranks; rank_batches=own gives each a whole one, and decoder=matmuls is split"
        raise ConfigError("decoder", None, f"with ranks={ranks} and rank_batches=same, {remedy}")

    @abstractmethod
    def build(
        self, sequences: int, dtype: torch.dtype, seed: int, placement: Placement, ranks: Ranks | None = None
    ) -> Decoder:
        """The decoder, with random weights of a dtype; equal seeds give equal ones on one kind of device.

        Args:
            sequences: that its steps have at most.
            ranks: that have the shares of one decoder, all of which build theirs; None: a whole one is built.
        """


@dataclass(frozen=True)
class DecoderCost:
    """What a decoder keeps, reads and computes, in bytes and floating-point operations.

    Args:
        shape: of the decoder.
        sequences: B, of a step.
        value_bytes: of one value in the compute dtype.
    """

    shape: DecoderShape
    sequences: int
    value_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Of all layers that are built."""
        return self.value_bytes * self.shape.layers * (self.shape.product_values + self.shape.norm_values)

    @property
    def vocabulary_bytes(self) -> int:
        """Of the embedding, the output's matrix and the norm before it."""
        shape = self.shape
        rows = shape.vocab_size + (0 if shape.tied else shape.output_rows) + 1
        return self.value_bytes * rows * shape.hidden_size

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of all layers that are built."""
        return self.value_bytes * self.shape.layers * self.sequences * self.shape.cache_values

    @property
    def decode_bytes(self) -> int:
        """The fewest bytes that a decode step reads: all weights, of the embedding a row for each sequence, and the
        whole cache."""
        rows = self.shape.output_rows + 1 + self.sequences  # of the output, the norm and the embedding
        return self.weight_bytes + self.value_bytes * rows * self.shape.hidden_size + self.cache_bytes

    def step_bytes(self, tokens: int) -> int:
        """The fewest bytes that a step with so many tokens of each sequence reads: one token decodes; a prompt reads
        the weights, and a row of the embedding for each of its tokens."""
        if tokens == 1:
            return self.decode_bytes
        rows = self.shape.output_rows + 1 + self.sequences * tokens
        return self.weight_bytes + self.value_bytes * rows * self.shape.hidden_size

    def flops(self, tokens: int) -> int:
        """Of a step with so many tokens of each sequence: matrix products, attention and one choice a sequence."""
        shape = self.shape
        layer = 2 * tokens * shape.product_values + shape.attention_flops(tokens)
        return self.sequences * (shape.layers * layer + 2 * shape.output_rows * shape.hidden_size)

    def scratch_bytes(self, tokens: int) -> int:
        """Of what lives at the same time during a step, about and at most: of a layer, or of the choice."""
        shape = self.shape
        return self.value_bytes * self.sequences * max(tokens * shape.scratch_values, 2 * shape.output_rows)

    def arriving_bytes(self, tokens: int) -> float:
        """Of all layers, from other ranks, in a step with so many tokens of each sequence."""
        return self.value_bytes * self.sequences * tokens * self.shape.layers * self.shape.arriving_values

    def needed_bytes(self, tokens: int) -> int:
        """Of device memory, for a step with so many tokens of each sequence."""
        return self.weight_bytes + self.vocabulary_bytes + self.cache_bytes + self.scratch_bytes(tokens)

    def require_fit(self, free_bytes: int, tokens: int) -> None:
        """Refuse a decoder that is larger than what is free.

        Raises:
            DoesNotFitError: saying how many layers would fit.
        """
        needed, layers = self.needed_bytes(tokens), self.shape.layers
        if needed <= free_bytes:
            return
        layer_bytes = (self.weight_bytes + self.cache_bytes) // layers
        fits = (free_bytes - (needed - layers * layer_bytes)) // layer_bytes
        remedy = f"{fits} of the decoder's {layers} layers would fit: decoder.layers={fits}"
        if fits < 1:
            remedy = "no layer of the decoder would fit; use a smaller decoder, batch_size or table"
        raise DoesNotFitError(DEVICE, needed, free_bytes, remedy)
