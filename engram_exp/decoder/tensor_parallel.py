"""Matrix products that ranks share out: each has a part of every layer, and sums bring the parts together, as in a
model that is served tensor parallel."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from engram_exp.decoder.shapes import MatmulShape
from engram_exp.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from engram_exp.decoder.shared_matmuls import SharedMatmulDecoder
    from engram_exp.machine.placement import Placement
    from engram_exp.machine.ranks import Ranks

MADE, READ, WHOLE = "made", "read", "whole"  # channels that are shared out, of a product
KEY = "decoder.split"


@dataclass(frozen=True, kw_only=True)
class MatmulShare(MatmulShape):
    """What each of several ranks has of a stand-in; its products are this rank's.

    Args:
        of: the whole.
        size: how many ranks there are.
    """

    of: MatmulShape
    size: int

    @property
    def sources(self) -> tuple[int, ...]:
        """What each product reads, as in the whole."""
        return self.of.sources

    @property
    def output_rows(self) -> int:
        """Tokens that a rank chooses from, at most."""
        return -(-self.vocab_size // self.size)

    @property
    def arriving_values(self) -> float:
        """Of the sums, as in a ring: each part of them is passed on by all but one rank, and so is the whole."""
        summed = sum(made for (made, _), split in zip(self.products, self.split or (), strict=True) if split == READ)
        return 2 * (1 - 1 / self.size) * summed

    def build(
        self, sequences: int, dtype: torch.dtype, seed: int, placement: Placement, ranks: Ranks | None = None
    ) -> SharedMatmulDecoder:
        """This rank's part of the decoder; equal seeds give equal wholes, whatever the number of ranks."""
        from engram_exp.decoder.shared_matmuls import SharedMatmulDecoder

        assert ranks is not None
        return SharedMatmulDecoder(self, sequences, dtype, seed, placement, ranks)


def share_of(whole: MatmulShape, ranks: int) -> MatmulShare:
    """What each of so many ranks has of a stand-in.

    Raises:
        ConfigError: it is not told how products are split, or they cannot be split so.
    """
    if whole.split is None:
        remedy = "how ranks share the products out is not told: made, read or whole for each, as [made, read]"
        raise ConfigError(KEY, "null", remedy)
    if len(whole.split) != len(whole.products) or not set(whole.split) <= {MADE, READ, WHOLE}:
        raise ConfigError(
            KEY, list(whole.split), f"must be made, read or whole for each of {len(whole.products)} products"
        )
    if whole.split[-1] == MADE:
        raise ConfigError(
            KEY, list(whole.split), "the last makes the hidden state, which all ranks need: read or whole"
        )
    if whole.vocab_size < ranks:
        raise ConfigError("ranks", ranks, f"of {whole.vocab_size} tokens not every rank has one; fewer ranks would do")
    for number in range(len(whole.products)):
        _check(whole, number, ranks)
    products = [[sum(spans), _read(whole, number, ranks)] for number, spans in enumerate(spans_of(whole, ranks))]
    sizes: dict[str, Any] = {field.name: getattr(whole, field.name) for field in fields(whole)}
    return MatmulShare(**{**sizes, "products": products}, of=whole, size=ranks)


def spans_of(whole: MatmulShape, ranks: int) -> list[list[int]]:
    """Channels that each of so many ranks makes of every product: of those that others read shared out its part of what
    is read, and behind it its part of the rest."""
    return [[end // ranks if split == MADE else end for end in ends] for ends, split in _stretches(whole)]


def _stretches(whole: MatmulShape) -> list[tuple[list[int], str]]:
    """Stretches of the channels of every product that are shared out by themselves, and how it is split."""
    assert whole.split is not None
    found = []
    for number, ((made, _), split) in enumerate(zip(whole.products, whole.split, strict=True), start=1):
        read = {
            whole.products[other][1]
            for other, source in enumerate(whole.sources)
            if source == number and whole.split[other] == READ
        }
        first = max(read, default=made)
        found.append(([first, made - first] if split == MADE and first < made else [made], split))
    return found


def _read(whole: MatmulShape, number: int, ranks: int) -> int:
    assert whole.split is not None
    read = whole.products[number][1]
    return read // ranks if whole.split[number] == READ else read


def _shared(whole: MatmulShape, number: int) -> list[int]:
    """Channels of a product that must be evenly shared out."""
    stretches, split = _stretches(whole)[number]
    return stretches if split == MADE else [whole.products[number][1]] if split == READ else []


def _check(whole: MatmulShape, number: int, ranks: int) -> None:
    """Refuse a product that so many ranks cannot share out."""
    assert whole.split is not None
    (made, read), split, shared = whole.products[number], whole.split[number], _shared(whole, number)
    if any(channels % ranks for channels in shared):
        remedy = f"{' and '.join(map(str, shared))} channels of product {number + 1}, [{made}, {read}], are not evenly "
        raise ConfigError("ranks", ranks, f"{remedy}shared out; {_dividing(whole)} would be")
    source = whole.sources[number]
    is_shared = source > 0 and whole.split[source - 1] == MADE
    if split == READ and not is_shared:
        raise ConfigError(KEY, list(whole.split), f"product {number + 1} reads what is not shared out; made or whole")
    if split == WHOLE and is_shared:
        raise ConfigError(KEY, list(whole.split), f"product {number + 1} reads what is shared out; read or made")
    widths = {
        whole.products[other][1]
        for other, of in enumerate(whole.sources)
        if of == source > 0 and split == whole.split[other] == READ
    }
    if len(widths) > 1:
        remedy = f"products that read shares of product {source} must read the same channels, not {sorted(widths)}"
        raise ConfigError(KEY, list(whole.split), remedy)
    there = sum(spans_of(whole, ranks)[source - 1]) if source else whole.hidden_size
    if _read(whole, number, ranks) > there:
        remedy = f"product {number + 1} reads {read} channels, of which a rank has {there}; fewer ranks would do"
        raise ConfigError("ranks", ranks, remedy)


def _dividing(whole: MatmulShape) -> str:
    """Numbers of ranks that share all products out evenly."""
    shared = [channels for number in range(len(whole.products)) for channels in _shared(whole, number)]
    found = [ranks for ranks in range(1, 17) if not any(channels % ranks for channels in shared)]
    return f"ranks={','.join(map(str, found))}"
