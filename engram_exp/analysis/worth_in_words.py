"""What memory is worth as memory for rows, in words."""

from __future__ import annotations

from collections.abc import Sequence

from engram_exp.analysis.worth import RowMemory, Worth
from engram_exp.vocabulary import DEVICE, HOST

MEMORY = {DEVICE: "device memory for rows", HOST: "host memory for rows in front of a file"}


def lines_of_worth(found: Sequence[Worth]) -> list[str]:
    """A line for each size of step and kind of rows; none where nothing was measured."""
    return [_line(one) for one in found]


def _line(worth: Worth) -> str:
    size = f"{worth.batch_size * worth.seq_len:,} tokens ({worth.batch_size:,} x {worth.seq_len:,})"
    head = f"{MEMORY[worth.place]}, {worth.strategy} {worth.policy}, {size}"
    times = "; ".join([f"{worth.held_against} {worth.without.ms:.4g} ms", *map(_of_size, worth.sizes)])
    return f"{head}: {times}. {_verdict(worth)}"


def _of_size(size: RowMemory) -> str:
    hits = "" if size.hit_rate is None else f" ({100 * size.hit_rate:.0f} % hit)"
    return f"{size.gb:g} GB {size.time.ms:.4g} ms{hits}"


def _verdict(worth: Worth) -> str:
    if worth.pays_from_gb is None or worth.enough_gb is None or worth.saved_ms_per_gb is None:
        return "None of it clearly pays back"
    most, enough = worth.sizes[-1].gb, worth.enough_gb
    more = "" if enough == most else f", and more than {enough:g} GB saves nothing clear"
    text = f"It pays back from {worth.pays_from_gb:g} GB on{more}: {worth.saved_ms_per_gb:.3g} ms a step for each GB"
    if worth.tokens_per_gb:
        text += f", which as key-value cache would hold {worth.tokens_per_gb:,} tokens"
    return text
