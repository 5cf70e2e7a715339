"""The card: what a run is about to do, in numbers, before it does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engram_exp.config.derived import batches_of
from engram_exp.machine.data_sheets import DataSheet
from engram_exp.measure.limits import Limit, Limits
from engram_exp.run.job import Job
from engram_exp.run.parts import Builder
from engram_exp.run.requirements import data_sheet
from engram_exp.strategy.footprint import Footprint
from engram_exp.vocabulary import FULL


@dataclass(frozen=True)
class Card:
    """What is shown.

    Args:
        title: of the run.
        lines: a label and a text each.
        cases: name, component and place, GB moved, GFLOP, limit in ms and what sets it, of each case.
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
    limit_of: Callable[[str], Limit | None],
    limits: Limits | None,
) -> Card:
    """Fill in the card of a run.

    Args:
        job: of the run.
        builder: of its components; nothing of it is built but what is free.
        cases: that will be timed.
        needed: memory.
        free: host and device bytes.
        work_of: bytes moved and FLOPs of a case.
        limit_of: the shortest time that this machine allows a case, if it is known.
        limits: where that comes from.
    """
    title = f"{job.choices['strategy']}  (run {job.run_id}, in {job.folder})"
    body = []
    for case in cases:
        moved, flops = work_of(case)
        limit = limit_of(case)
        work = f"{moved / 1e9:.3g}", f"{flops / 1e9:.4g}" if flops else ""
        bound = (f"{limit.ms:.3g}", limit.by) if limit else ("", "")
        body.append((case, _component(case, builder, job), *work, *bound))
    return Card(title, _lines(job, builder, needed, free, limits), body)


def _lines(
    job: Job, builder: Builder, needed: Footprint, free: tuple[int, int], limits: Limits | None
) -> list[tuple[str, str]]:
    config, choices, geometry = job.config, job.choices, builder.geometry
    scale = geometry.table_scale
    rows = f"{geometry.rows:,}" if scale == 1 else f"{geometry.rows:,} of {geometry.true_rows:,} (scale {scale:g})"
    layer = f"{choices['model']}, layer {config.layer}: {rows} rows of {geometry.row_values} {choices['dtype']}"
    tokens = f"{config.batch_size} x {config.seq_len}, {choices['tokens']}, {batches_of(config)} batches in turn"
    lines = [
        ("layer", layer),
        ("tokens", tokens),
        ("table", f"{needed.table_bytes / 1e9:.2f} GB" if needed.table_bytes else "not built: no case needs it"),
        ("host", f"{needed.host_bytes / 1e9:.2f} GB needed, {free[0] / 1e9:.2f} GB free"),
    ]
    if builder.device.type != "cpu":
        lines.append((str(builder.device), f"{needed.device_bytes / 1e9:.2f} GB needed, {free[1] / 1e9:.2f} GB free"))
    else:
        lines.append(("device", f"none: the CPU stands in for it ({needed.device_bytes / 1e9:.2f} GB more)"))
    if limits:
        lines.append(("measured", limits.summary(config.dtype.name)))
    if sheet := data_sheet(builder):
        lines.append(("data sheet", _data_sheet(sheet, config.dtype.name)))
    return lines


def _data_sheet(sheet: DataSheet, dtype: str) -> str:
    rate = sheet.tflop_per_s.get(dtype)
    return (
        f"{sheet.gpu}: device memory {sheet.memory_gb_per_s:g} GB/s ({sheet.memory_gb:g} GB), "
        f"{f'device {dtype} {rate:g} TFLOP/s, ' if rate else ''}link {sheet.link_gb_per_s:g} GB/s"
    )


def _component(case: str, builder: Builder, job: Job) -> str:
    if case == FULL:
        chunks = f", {min(builder.chunk_tokens, builder.tokens)} tokens at a time" if builder.chunk_tokens else ""
        return f"all of the strategy{chunks}{', one graph' if job.config.capture == 'graph' else ''}"
    if case == "widening":
        return f"{builder.place_of(case)}: fp8 to {job.config.dtype.name}"
    group = "upload" if case.startswith("up_") else case
    return f"{builder.place_of(case)}: {job.choices[group]}"
