"""The decoders that there are: a dense one with attention, and matrix products that stand in for any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engram_exp.decoder.shape import DecoderShape
from engram_exp.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from engram_exp.decoder.dense import DenseDecoder
    from engram_exp.decoder.matmuls import MatmulDecoder
    from engram_exp.decoder.tensor_parallel import MatmulShare
    from engram_exp.machine.placement import Placement
    from engram_exp.machine.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class DenseShape(DecoderShape):
    """A dense decoder like Qwen3's: grouped queries with a norm on each head, gated MLPs, rotary positions.

    Args:
        intermediate_size: channels I of the MLP.
        heads, kv_heads, head_dim: H query heads share K heads of keys and values, all of D channels.
        rope_theta: base of the rotary positions.
        context: tokens S whose keys and values a decode step finds of each sequence, its own among them; a prompt has
            no more.
        compile: layers are compiled by torch.compile, which makes one kernel of what else are a dozen small ones; the
            first call of a step takes seconds for it.

    Raises:
        ConfigError: heads that do not share evenly, or that no rotary position can turn.
    """

    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    context: int
    compile: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise ConfigError("decoder.heads", self.heads, f"must be a multiple of decoder.kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ConfigError("decoder.head_dim", self.head_dim, "must be even: positions turn pairs of channels")

    @property
    def qkv_width(self) -> int:
        """Channels of a token's queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def product_values(self) -> int:
        """Of queries, keys and values, the output of attention, gate, up and down."""
        attention = self.qkv_width + self.heads * self.head_dim
        return self.hidden_size * (attention + 3 * self.intermediate_size)

    @property
    def norm_values(self) -> int:
        """Before attention and MLP, and of each query and key."""
        return 2 * (self.hidden_size + self.head_dim)

    @property
    def cache_values(self) -> int:
        """Keys and values of a sequence's context."""
        return 2 * self.context * self.kv_heads * self.head_dim

    @property
    def scratch_values(self) -> int:
        """The residual, what is added to it and the norm of both, beside the MLP or attention, whichever is larger."""
        return 3 * self.hidden_size + max(4 * self.intermediate_size, 3 * self.qkv_width)

    def attention_flops(self, tokens: int) -> int:
        """A decode step's token attends to its context, each of a prompt's to those before it and to itself."""
        pairs = self.context if tokens == 1 else tokens * (tokens + 1) // 2
        return 4 * pairs * self.heads * self.head_dim

    def build(
        self, sequences: int, dtype: torch.dtype, seed: int, placement: Placement, ranks: Ranks | None = None
    ) -> DenseDecoder:
        """The decoder, with random weights."""
        from engram_exp.decoder.dense import DenseDecoder  # imports transformers' models, which takes seconds

        return DenseDecoder(self, sequences, dtype, seed, placement)


@dataclass(frozen=True, kw_only=True)
class MatmulShape(DecoderShape):
    """A stand-in for a model that is not here: its layers' matrix products, one after the other, and nothing else.

    Args:
        products: the products of a layer, in order, each by the channels n that it makes and the k that it reads. It
            reads the first k channels of the last product before it that makes as many, or of the hidden state; the
            last one is added to the hidden state.
        split: of each product, what ranks that run it together share out: the channels that it makes (`made`), those
            that it reads, so that what it makes is the sum of theirs (`read`), or nothing (`whole`). None: not told.

    Raises:
        ConfigError: a product that no other makes enough channels for, or a last one that makes no hidden state.
    """

    products: Sequence[Sequence[int]]
    split: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.products or any(len(sizes) != 2 or min(sizes) < 1 for sizes in self.products):
            remedy = "must be a list of [channels made, channels read] of each product, as [[4096, 4096]]"
            raise ConfigError("decoder.products", self.products, remedy)
        if self.products[-1][0] != self.hidden_size:
            remedy = f"the last must make decoder.hidden_size={self.hidden_size} channels, to which they are added"
            raise ConfigError("decoder.products", self.products, remedy)
        _ = self.sources

    @property
    def sources(self) -> tuple[int, ...]:
        """What each product reads: 0 is the hidden state, i the i-th product."""
        widths = [self.hidden_size, *(made for made, _ in self.products)]
        sources = []
        for before, (_, read) in enumerate(self.products, start=1):
            wide_enough = [source for source in range(before) if widths[source] >= read]
            if not wide_enough:
                remedy = f"nothing before product {before} makes the {read} channels that it reads"
                raise ConfigError("decoder.products", self.products, remedy)
            sources.append(wide_enough[-1])
        return tuple(sources)

    @property
    def product_values(self) -> int:
        """Of all products."""
        return sum(made * read for made, read in self.products)

    @property
    def scratch_values(self) -> int:
        """The hidden state before and after a layer, and what all products make."""
        return 2 * self.hidden_size + sum(made for made, _ in self.products)

    def among(self, ranks: int) -> MatmulShare:
        """What each of so many ranks has of it, as `split` says."""
        from engram_exp.decoder.tensor_parallel import share_of

        return share_of(self, ranks)

    def build(
        self, sequences: int, dtype: torch.dtype, seed: int, placement: Placement, ranks: Ranks | None = None
    ) -> MatmulDecoder:
        """The stand-in, with random weights."""
        from engram_exp.decoder.matmuls import MatmulDecoder

        return MatmulDecoder(self, sequences, dtype, seed, placement)
