"""The order in which a kernel reads rows. Nothing here imports PyTorch."""

from __future__ import annotations

from engram_exp.errors import ConfigError
from engram_exp.vocabulary import AS_ASKED, AUTO_ORDER, HOST, ROW_ORDERS, SORTED


def row_order(order: str, rows: int, sort_from_rows: int, table: str) -> str:
    """The order of the reads: as_asked or sorted.

    `auto` means sorted from `sort_from_rows` rows on, if they come through the link.

    Raises:
        ConfigError: an unknown order.
    """
    if order not in ROW_ORDERS:
        raise ConfigError("lookup.order", order, f"must be one of {', '.join(ROW_ORDERS)}")
    if order != AUTO_ORDER:
        return order
    return SORTED if table == HOST and rows >= sort_from_rows else AS_ASKED
