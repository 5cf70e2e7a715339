"""The card: what a run is about to do, in numbers, before it does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engram_exp.config.derived import GRAPH, batches_of, capture_of, exchanges, ids_of
from engram_exp.machine import topology
from engram_exp.machine.data_sheets import DataSheet
from engram_exp.measure.rates import Limit
from engram_exp.run.graph_calls import graph_calls_of
from engram_exp.run.job import Job
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import data_sheet
from engram_exp.run.step_plan import StepPlan
from engram_exp.strategy.costs import bytes_moved, flops
from engram_exp.strategy.footprint import Footprint
from engram_exp.vocabulary import BESIDE, DECODER, FETCH, FULL, IN_STEP, OF_A_STEP, READY, WHOLES

IN_WORDS = {
    FETCH: "rows of all layers, nothing beside",
    DECODER: "alone",
    READY: "decoder and layers, rows in place",
    IN_STEP: "decoder and layers, rows fetched",
}


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
    plan: Plan,
    needed: Footprint,
    free: tuple[int, int | None],
    limit_of: Callable[[str], Limit | None],
) -> Card:
    """Fill in the card of a run.

    Args:
        job: of the run.
        plan: what it comes to.
        needed: memory.
        free: host and device bytes; None where the CPU stands in for the device.
        limit_of: the shortest time that this machine allows a case, if it is known.
    """
    title = f"{job.choices['strategy']}  (run {job.run_id}, in {job.folder})"
    body = []
    for case in plan.cases:
        tasks, limit = plan.tasks_of(case), limit_of(case)
        operations = flops(tasks)
        done = f"{bytes_moved(tasks) / 1e9:.3g}", f"{operations / 1e9:.4g}" if operations else ""
        bound = (f"{limit.ms:.3g}", limit.by) if limit else ("", "")
        body.append((case, _runs_on(case, plan, job), *done, *bound))
    return Card(title, _lines(job, plan, needed, free), body)


def _lines(job: Job, plan: Plan, needed: Footprint, free: tuple[int, int | None]) -> list[tuple[str, str]]:
    config, choices, geometry = job.config, job.choices, plan.geometry
    scale, (free_host, free_device) = geometry.table_scale, free
    rows = f"{geometry.rows:,}" if scale == 1 else f"{geometry.rows:,} of {geometry.true_rows:,} (scale {scale:g})"
    layer = f"{choices['model']}, layer {config.layer}: {rows} rows of {geometry.row_values} {choices['dtype']}"
    tokens = f"{config.batch_size} x {config.seq_len}, {choices['tokens']}, {batches_of(config)} batches in turn"
    tokens += f", {config.pause_ms:g} ms apart" if config.pause_ms else ""
    lines = [
        ("layer", layer),
        ("tokens", tokens),
        ("table", f"{needed.table_bytes / 1e9:.2f} GB" if needed.table_bytes else "not built: no case needs it"),
        ("host", f"{needed.host_bytes / 1e9:.2f} GB needed, {free_host / 1e9:.2f} GB free"),
    ]
    on_device = needed.device_bytes / 1e9
    if free_device is None:
        lines.append(("device", f"none: the CPU stands in for it ({on_device:.2f} GB more)"))
    else:
        lines.append((str(plan.device), f"{on_device:.2f} GB needed, {free_device / 1e9:.2f} GB free"))
    if config.ranks > 1:
        lines.append(("ranks", _ranks(job, plan)))
    nodes = topology.cpus_of_nodes()
    if config.ranks > 1 or len(nodes) > 1:
        bound = f"; bound to {config.hardware.numa}" if config.hardware.numa is not None else ""
        told = topology.in_words(nodes, topology.places_of_gpus(), topology.ways_between_gpus())
        lines.append(("topology", told + bound))
    if (calls := config.graph_calls) and not any(graph_calls_of(plan, case) for case in plan.cases):
        lines.append(("graph_calls", f"{calls}, but no case of this run is timed so"))
    if plan.looks_up and (reading := plan.reading(plan.cases[-1])):
        programs = f"in {reading.programs} programs" if reading.programs else "in a program for each block"
        lines.append(("rows", f"read {reading.order}, {reading.rows_per_program} at a time, {programs}"))
    if plan.step:
        lines.append(("step", _step(job, plan.step)))
    if plan.limits:
        lines.append(("measured", plan.limits.summary(config.dtype.name)))
    if sheet := data_sheet(plan):
        lines.append(("data sheet", _data_sheet(sheet, config.dtype.name)))
    return lines


def _ranks(job: Job, plan: Plan) -> str:
    ranks, config = plan.ranks, job.config
    where = "on this host" if ranks.hosts == 1 else f"on {ranks.hosts} hosts"
    text = f"{ranks.size} {where}, memory and work below of each; they ask for {config.rank_batches} tokens"
    return f"{text}; {config.table.split} shares, exchange={job.choices['exchange']}" if exchanges(config) else text


def _step(job: Job, step: StepPlan) -> str:
    layers, prefetch = ", ".join(map(str, step.layers)), job.config.prefetch
    where = f"{prefetch.where} it" if prefetch.where == BESIDE else prefetch.where
    return (
        f"{job.choices['decoder']}, {step.shape.layers} layers, {step.cost.weight_bytes / 1e9:.3g} GB, tables in front "
        f"of {layers}; ids made on the {ids_of(job.config)}; rows fetched {where}"
    )


def _data_sheet(sheet: DataSheet, dtype: str) -> str:
    rate = sheet.tflop_per_s.get(dtype)
    return (
        f"{sheet.gpu}: device memory {sheet.memory_gb_per_s:g} GB/s ({sheet.memory_gb:g} GB), "
        f"{f'device {dtype} {rate:g} TFLOP/s, ' if rate else ''}link {sheet.link_gb_per_s:g} GB/s"
    )


def _runs_on(case: str, plan: Plan, job: Job) -> str:
    """Place and component of a case."""
    if case in WHOLES:
        chunks = f", {max(piece.tokens for piece in plan.cuts)} tokens at a time" if plan.cuts else ""
        graph = ", one graph" if capture_of(job.config) == GRAPH else ""
        return f"all of the {'strategy' if case == FULL else 'layer'}{chunks}{graph}"
    if case in OF_A_STEP:
        return IN_WORDS[case]
    (task,) = plan.tasks_of(case)
    stage = task.load.stage
    option = (
        job.choices.get("upload" if stage.is_upload else case) or f"{job.choices['dtype']} to {job.config.dtype.name}"
    )
    graph = f", {calls} calls in one graph" if (calls := graph_calls_of(plan, case)) else ""
    return f"{stage.place}: {option}{graph}"
