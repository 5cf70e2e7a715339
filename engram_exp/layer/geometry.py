"""The numbers of one Engram layer: the rows of its table, and how large each of its values is.

Symbols, as in "Conditional Memory via Scalable Lookup" (arXiv 2601.07372): T tokens, H hash columns (orders x heads),
D values per row, C hidden size, M hyper-connection copies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from engram_exp.errors import ConfigError
from engram_exp.layer.primes import PrimeSource, search_primes
from engram_exp.vocabulary import EMBEDDINGS, HIDDEN, KV, PARTS, ROW_IDS, ROWS, TOKEN_IDS

TOKEN_ID_BYTES = 8  # ids are int64
ONE_SCALES = 1e-30, 1e30  # times an e4m3 value, neither leaves the range of bfloat16


@dataclass(frozen=True)
class EngramGeometry:
    """One layer of a model with Engram tables.

    Args:
        layers: every layer that has a table; their order decides which primes each one gets.
        layer: the layer at hand, one of `layers`.
        orders: n-gram orders, ascending.
        heads: hash heads per order.
        vocab_per_order: rows asked for by each head of an order; the prime search starts there.
        row_values: D, values in one row.
        hidden_size: C.
        hc_mult: M, hyper-connection copies, each with a key of its own.
        bias: whether the projections add a bias.
        norm_eps: epsilon of the keys' RMSNorm.
        table_scale: share of `vocab_per_order` that is used, 0 < s <= 1.
        rows_multiple_of: the table has a multiple of so many rows; no hash reaches those that it is filled up with.
        conv_kernel: K, taps of the short convolution behind the gate; None if the model has none.
        conv_dilation: tokens from one tap to the next; None with it.
        value_bytes: size of one value of the compute dtype.
        values_per_scale: None if rows are stored in the compute dtype; else a row holds one byte for each value and one
            scale byte for so many of them.
        one_scale: None, or the scale of the whole table: a row holds one byte for each value, and nothing else.
        prime_source: finds the columns' primes; called as `search_primes`.

    Raises:
        ConfigError: a number out of range; the message names the key.
    """

    layers: tuple[int, ...]
    layer: int
    orders: tuple[int, ...]
    heads: int
    vocab_per_order: tuple[int, ...]
    row_values: int
    hidden_size: int
    hc_mult: int
    bias: bool
    norm_eps: float
    table_scale: float = 1.0
    rows_multiple_of: int = 1
    conv_kernel: int | None = None
    conv_dilation: int | None = None
    value_bytes: int = 2
    values_per_scale: int | None = None
    one_scale: float | None = None
    prime_source: PrimeSource = field(default=search_primes, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("heads", "row_values", "hidden_size", "hc_mult", "rows_multiple_of"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}", getattr(self, name), "must be at least 1")
        if not self.orders or min(self.orders) < 1 or list(self.orders) != sorted(set(self.orders)):
            raise ConfigError("model.orders", list(self.orders), "must be ascending whole numbers of at least 1")
        if len(self.vocab_per_order) != len(self.orders) or min(self.vocab_per_order) < 1:
            raise ConfigError(
                "model.vocab_per_order",
                list(self.vocab_per_order),
                f"must hold one positive number for each of the orders {list(self.orders)}",
            )
        if not 0 < self.table_scale <= 1:
            raise ConfigError("model.table_scale", self.table_scale, "must be above 0 and at most 1")
        if self.values_per_scale is not None and self.values_per_scale < 1:
            raise ConfigError("dtype.values_per_scale", self.values_per_scale, "must be at least 1, or null")
        if self.one_scale is not None:
            self._check_one_scale(self.one_scale)
        if not self.norm_eps > 0:
            raise ConfigError("model.norm_eps", self.norm_eps, "must be above 0")
        if (self.conv_kernel, self.conv_dilation) != (None, None):
            for name, least in (("conv_kernel", 2), ("conv_dilation", 1)):
                number = getattr(self, name)
                if number is None or number < least:
                    remedy = f"must be at least {least}; of a model without convolution, both its numbers are null"
                    raise ConfigError(f"model.{name}", "null" if number is None else number, remedy)
        if len(set(self.layers)) != len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ConfigError("model.layers", list(self.layers), "must be distinct whole numbers of at least 0")
        if self.layer not in self.layers:
            raise ConfigError(
                "layer", self.layer, f"this model has tables on the layers {', '.join(map(str, self.layers))}"
            )

    def _check_one_scale(self, scale: float) -> None:
        least, most = ONE_SCALES
        if not least <= scale <= most:
            raise ConfigError("dtype.one_scale", scale, f"must be {least:g} to {most:g}, or null")
        if self.values_per_scale is not None:
            remedy = "rows have scales of their own (dtype.values_per_scale); null one of the two"
            raise ConfigError("dtype.one_scale", scale, remedy)

    @property
    def number(self) -> int:
        """The layer's among those with tables, from 0."""
        return self.layers.index(self.layer)

    @property
    def max_order(self) -> int:
        """N, the longest n-gram; a sequence needs the N - 1 ids before it as history."""
        return self.orders[-1]

    @property
    def columns(self) -> int:
        """H, row ids per token."""
        return len(self.orders) * self.heads

    @property
    def embedding_width(self) -> int:
        """H * D, values that one token looks up."""
        return self.columns * self.row_values

    @property
    def kv_width(self) -> int:
        """(M + 1) * C, values of one token's keys and value."""
        return (self.hc_mult + 1) * self.hidden_size

    @property
    def conv_reach(self) -> int:
        """R = (K - 1) * dilation, tokens before one that its convolution reads; 0 without one."""
        return (
            0 if self.conv_kernel is None or self.conv_dilation is None else (self.conv_kernel - 1) * self.conv_dilation
        )

    @cached_property
    def head_rows(self) -> tuple[int, ...]:
        """Rows of each hash column of this layer at `table_scale`, int [H]: distinct primes."""
        return self._head_rows(self.table_scale)

    @cached_property
    def rows(self) -> int:
        """Rows of this layer's table at `table_scale`."""
        return self._filled_up(sum(self.head_rows))

    @cached_property
    def true_rows(self) -> int:
        """Rows of this layer's table in the real model, whatever `table_scale` is."""
        return self._filled_up(sum(self._head_rows(1.0)))

    def _filled_up(self, rows: int) -> int:
        return -(-rows // self.rows_multiple_of) * self.rows_multiple_of

    def _head_rows(self, scale: float) -> tuple[int, ...]:
        vocab_per_order = tuple(max(1, round(vocab * scale)) for vocab in self.vocab_per_order)
        return tuple(self.prime_source(self.number + 1, vocab_per_order, self.heads)[self.number])

    @property
    def row_id_bytes(self) -> int:
        """Row ids are int32 where the table allows it, else int64."""
        return 4 if self.rows <= 2**31 else 8

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is stored."""
        if self.one_scale is not None:
            return self.row_values
        if self.values_per_scale is None:
            return self.row_values * self.value_bytes
        return self.row_values + -(-self.row_values // self.values_per_scale)

    @property
    def table_bytes(self) -> int:
        """Bytes of the whole table at `table_scale`."""
        return self.rows * self.row_bytes

    def stored_bytes(self, tokens: int) -> int:
        """Bytes of the rows that T tokens look up, as they are stored."""
        return tokens * self.columns * self.row_bytes

    def bytes_of(self, value: str, tokens: int, sequences: int) -> int:
        """Bytes of a value of T tokens in B sequences, each of which has N - 1 token ids before it."""
        if value == TOKEN_IDS:
            return (tokens + sequences * (self.max_order - 1)) * TOKEN_ID_BYTES
        of_token = {
            ROW_IDS: self.columns * self.row_id_bytes,
            ROWS: self.columns * self.row_bytes,
            PARTS: self.columns * self.row_bytes,
            EMBEDDINGS: self.embedding_width * self.value_bytes,
            KV: self.kv_width * self.value_bytes,
            HIDDEN: self.hc_mult * self.hidden_size * self.value_bytes,
        }
        return tokens * of_token[value]
