"""The card: what a run is about to do, in numbers, before it does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engram_exp.build import Builder
from engram_exp.job import Job
from engram_exp.memory import Footprint
from engram_exp.plan import FULL


@dataclass(frozen=True)
class Card:
    """What is shown.

    Args:
        title: of the run.
        lines: a label and a text each.
        cases: name, component and place, GB moved, GFLOP of each case.
    """

    title: str
    lines: Sequence[tuple[str, str]]
    cases: Sequence[Sequence[str]]


def make_card(
    job: Job,
    builder: Builder,
    cases: Sequence[str],
    needed: Footprint,
    free: tuple[int, int],
    work_of: Callable[[str], tuple[int, int]],
) -> Card:
    """Fill in the card of a run.

    Args:
        job: of the run.
        builder: of its components; nothing of it is built but what is free.
        cases: that will be timed.
        needed: memory.
        free: host and device bytes.
        work_of: bytes moved and FLOPs of a case.
    """
    config, choices, geometry = job.config, job.choices, builder.geometry
    scale = geometry.table_scale
    rows = f"{geometry.rows:,}" if scale == 1 else f"{geometry.rows:,} of {geometry.true_rows:,} (scale {scale:g})"
    lines = [
        (
            "layer",
            f"{choices['model']}, layer {config.layer}: {rows} rows of {geometry.row_values} {config.dtype.name}",
        ),
        ("tokens", f"{config.batch_size} x {config.seq_len}, {choices['tokens']}, {config.batches} batches in turn"),
        ("table", f"{needed.table_bytes / 1e9:.2f} GB" if needed.table_bytes else "not built: no case needs it"),
        ("host", f"{needed.host_bytes / 1e9:.2f} GB needed, {free[0] / 1e9:.2f} GB free"),
    ]
    if builder.device.type != "cpu":
        lines.append((str(builder.device), f"{needed.device_bytes / 1e9:.2f} GB needed, {free[1] / 1e9:.2f} GB free"))
    else:
        lines.append(("device", f"none: the CPU stands in for it ({needed.device_bytes / 1e9:.2f} GB more)"))
    body = []
    for case in cases:
        moved, flops = work_of(case)
        body.append((case, _component(case, builder, job), f"{moved / 1e9:.3g}", f"{flops / 1e9:.4g}" if flops else ""))
    return Card(f"{choices['strategy']}  (run {job.run_id}, in {job.folder})", lines, body)


def _component(case: str, builder: Builder, job: Job) -> str:
    if case == FULL:
        return "all of the strategy"
    group = "upload" if case.startswith("up_") else case
    return f"{builder.place_of(case)}: {job.choices[group]}"
