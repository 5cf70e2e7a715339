"""What a plan needs of the machine and of its components, checked before anything is filled."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import psutil
import torch
from hydra.utils import get_class

from engram_exp.config.checks import check_cpus, check_teams, chunks_refused
from engram_exp.config.derived import GRAPH, batches_of, capture_of, components_of
from engram_exp.config.options import GIVEN, check_hash, check_options
from engram_exp.errors import ConfigError, SkippedError
from engram_exp.machine.data_sheets import DataSheet, data_sheet_of, is_of
from engram_exp.machine.memory import free_device_bytes
from engram_exp.machine.placement import triton_is_interpreted
from engram_exp.measure.rates import Limit
from engram_exp.run.graph_calls import graph_calls_of
from engram_exp.run.kinds import KINDS
from engram_exp.run.plan import Plan, device_name
from engram_exp.stage import kind_of
from engram_exp.steps.fusion.step import Fusion
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.projection.step import Projection
from engram_exp.steps.upload.step import Upload
from engram_exp.steps.widening import build_widening
from engram_exp.strategy.plan import works_alone
from engram_exp.vocabulary import (
    COLD,
    DECODER,
    DEVICE,
    EMBEDDINGS,
    FETCH,
    FULL,
    FUSION,
    HOST,
    IN_STEP,
    LAYER,
    LINK,
    LOOKUP,
    PARTS,
    ROWS,
    STEADY,
    THIS_STEP,
    WHOLES,
    WIDENING,
)  # fmt: skip

LEAST_CALLS = 4  # of a case: one is verified, one warms up, one is timed, and one is verified at the end


def check_plan(plan: Plan) -> None:
    """Skip what this machine cannot do, and refuse what does not go together.

    Raises:
        SkippedError: the strategy needs an accelerator that is not there, or memory that a kernel can read.
        ConfigError: naming the key.
    """
    check_cpus(plan.config.hardware)
    require_accelerator(plan)
    _require_readable_table(plan)
    sheet = plan.config.hardware.data_sheet
    if sheet:
        require_data_sheet(sheet.gpu, sheet.memory_gb, device_name(plan.device), total_device_bytes(plan.device))
    check_components(plan)
    check_teams(plan.config)
    check_row_cache(plan)
    check_fusion(plan)
    _check_sources(plan)
    _check_graph_calls(plan)
    if plan.wholes:
        _check_schedule(plan)
    check_dtype(plan)


def require_data_sheet(gpu: str, memory_gb: float, name: str, memory_bytes: int) -> None:
    """Refuse the data sheet of another part, or of a variant with other memory, link or power.

    Args:
        gpu, memory_gb: of the sheet.
        name, memory_bytes: of the device.

    Raises:
        ConfigError: naming the device.
    """
    if not is_of(gpu, memory_gb, name, memory_bytes):
        remedy = f"the device is {name} with {memory_bytes / 1e9:.0f} GB; use its own option or hardware=auto"
        raise ConfigError("hardware.data_sheet.gpu", gpu, remedy)


def data_sheet(plan: Plan) -> DataSheet | None:
    """What the vendor promises of the device: as configured, else looked up by the device's name."""
    configured: DataSheet | None = plan.config.hardware.data_sheet
    return configured or data_sheet_of(device_name(plan.device), total_device_bytes(plan.device))


def total_device_bytes(device: torch.device) -> int:
    """Memory of the accelerator, or of the host where the CPU stands in for it."""
    return psutil.virtual_memory().total if device.type == "cpu" else int(torch.accelerator.get_memory_info(device)[1])


def check_components(plan: Plan) -> None:
    """Refuse unknown or mistyped options of the components, and a table or a lookup that lives elsewhere than the
    strategy says.

    Raises:
        ConfigError: naming the key.
    """
    for group in components_of(plan.config):
        given = () if group == DECODER else GIVEN
        check_options(group, plan.config[group], plan.choices.get(group), given)
    check_hash(plan.config.model)
    table: Any = get_class(plan.config.table._target_)
    wanted = plan.config.strategy.table
    if table.place != wanted:
        raise ConfigError(
            "table", None, f"lives on the {table.place}, but the strategy keeps its table on the {wanted}"
        )
    lookup, _ = _kinds(plan)
    if lookup.on_both != (plan.config.strategy.lookup == LINK):
        if lookup.on_both:
            remedy = (
                f"takes rows by the CPU and the GPU, and not on the {plan.config.strategy.lookup} alone: strategy=both "
                "or strategy=distinct"
            )
        else:
            remedy = "takes rows in one place, and strategy.lookup=link in two: lookup=both, or another strategy"
        raise ConfigError("lookup", None, remedy)


def check_row_cache(plan: Plan) -> None:
    """Refuse a cache of rows that cannot be, and one whose state nobody would vouch for.

    Raises:
        ConfigError: naming the key.
    """
    kind, load = next(plan.task(stage) for stage in plan.stages if stage.name == LOOKUP.name)
    assert issubclass(kind, Lookup)
    if not kind.leaves_rows(load.options):
        return
    kind.refuse(load, free_device_bytes(plan.device))
    state = load.options.get("state")
    if plan.step and state == COLD and plan.config.steps_per_sample > 1:
        remedy = "the steps of a sample follow each other, and find what the first left: use steps_per_sample=1"
        raise ConfigError("lookup.state", COLD, remedy)
    reading = [case for case in plan.cases if case in (LOOKUP.name, *WHOLES, FETCH, IN_STEP)]
    if state == STEADY and reading not in [[LOOKUP.name], [FULL], [LAYER], [FETCH], [IN_STEP]]:
        remedy = "one case would find what another has read: use cases=[lookup], or cases=[ready,step]"
        raise ConfigError("lookup.state", STEADY, remedy)
    if state == STEADY and reading == [IN_STEP] and plan.config.prefetch.lead != THIS_STEP:
        remedy = "rows that come a step ahead would be there before they are asked for; use prefetch.lead=this_step"
        raise ConfigError("lookup.state", STEADY, remedy)
    least = 2 * max(1, graph_calls_of(plan, LOOKUP.name))
    if state == STEADY and batches_of(plan.config) < least:
        remedy = f"must be at least {least} for lookup.state=steady: half are timed, and none twice in a graph"
        raise ConfigError("batches", plan.config.batches, remedy)


def check_time(timeout_s: float, limits: Mapping[str, Limit | None]) -> None:
    """Skip what cannot be done in time.

    Args:
        timeout_s: that the run has.
        limits: the shortest time that this machine allows each case; None where it is not known.

    Raises:
        SkippedError: naming the case that takes longest.
    """
    known = {case: limit.ms / 1e3 for case, limit in limits.items() if limit is not None}
    case = max(known, key=lambda each: known[each], default=None)
    if case is not None and LEAST_CALLS * known[case] > timeout_s:
        raise SkippedError(
            f"{case}: a call takes {known[case]:.0f} s on this machine at best, and {LEAST_CALLS} at least are made: "
            f"more than timeout_s={timeout_s:g}"
        )


def check_dtype(plan: Plan) -> None:
    """Refuse a dtype that the device cannot compute in.

    Raises:
        ConfigError: naming the dtype.
    """
    device, dtype = plan.device, plan.config.dtype.name
    try:
        probe = torch.ones(16, 16, dtype=plan.dtype, device=device)
        probe @ probe
    except (RuntimeError, TypeError) as error:
        raise ConfigError("dtype", dtype, f"{device} cannot multiply matrices in it; try float32") from error
    if any(stage.name == WIDENING.name and stage.place == DEVICE for stage in plan.stages):
        stored = torch.zeros(1, plan.row_format.width, dtype=torch.uint8, device=device)
        try:
            build_widening(plan.row_format, 1, 1, plan.memory(DEVICE))(stored)
        except (RuntimeError, TypeError) as error:
            remedy = f"{device} cannot convert it; use dtype={dtype}, or strategy=kv_on_cpu"
            raise ConfigError("dtype", plan.choices.get("dtype") or "fp8", remedy) from error


def require_accelerator(plan: Plan) -> None:
    """Skip a run (`SkippedError`) with a step that only a kernel does, where there is no GPU for it."""
    if plan.has_link or triton_is_interpreted():
        return
    for stage in plan.stages:
        if stage.side != DEVICE or stage.is_upload or not KINDS[stage.name].rotates:
            continue
        if not _runs_anywhere(plan.config[stage.name]._target_):  # there, kernels do that
            raise SkippedError(f"no accelerator: this strategy runs {stage.name} on one")


def _runs_anywhere(target: str) -> bool:
    """Whether a component runs on the CPU, too; without Triton one that is a kernel cannot even be imported."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(getattr(import_module(module), name), "anywhere", False)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return False


def _require_readable_table(plan: Plan) -> None:
    strategy, table = plan.config.strategy, plan.config.table
    through_link = strategy.table == HOST and strategy.lookup != HOST and plan.device.type == "cuda"
    if through_link and not table.get("pinned", False) and not _kinds(plan)[0].asks_host:
        raise SkippedError("a kernel reads host memory only where it is pinned: table=pinned or table=huge")


def _check_sources(plan: Plan) -> None:
    """Refuse an upload that would keep all memory that a lookup ever handed out."""
    lookup, upload = _kinds(plan)
    crosses = any(stage.is_upload and stage.needs in (ROWS, PARTS, EMBEDDINGS) for stage in plan.stages)
    if crosses and lookup.fresh and upload.keeps_sources:
        remedy = "hands out other pinned memory on each call, all of which this upload would keep: upload=fresh"
        raise ConfigError("lookup", None, remedy)


def _kinds(plan: Plan) -> tuple[Any, Any]:
    """The kinds of the lookup and of the upload."""
    config = plan.config
    return kind_of(get_class(config.lookup._target_), Lookup), kind_of(get_class(config.upload._target_), Upload)


def check_fusion(plan: Plan) -> None:
    """Refuse a fusion that the model has no parameters for, or one that leaves some of them out: what no model computes
    should not be measured by mistake.

    Raises:
        ConfigError: saying which fusion the model has.
    """
    if FUSION.name not in components_of(plan.config):
        return
    kind: Any = kind_of(get_class(plan.config.fusion._target_), Fusion)
    if kind.convolves and plan.geometry.conv_kernel is None:
        raise ConfigError("fusion", None, "this model has no convolution (model.conv_kernel=null); use fusion=gated")
    if not kind.convolves and plan.geometry.conv_kernel is not None:
        remedy = "this model convolves what it has gated; use fusion=gated_conv"
        raise ConfigError(
            "fusion", None, f"{remedy}, or model.conv_kernel=null model.conv_dilation=null for one without"
        )


def _check_graph_calls(plan: Plan) -> None:
    calls = plan.config.graph_calls
    if calls and plan.device.type != "cuda":
        raise ConfigError("graph_calls", calls, f"needs a CUDA device, and this is {plan.device}; use graph_calls=0")


def _check_schedule(plan: Plan) -> None:
    """Refuse a pipeline or a graph that cannot be."""
    captured = capture_of(plan.config) == GRAPH
    if captured and _kinds(plan)[0].asks_host:
        raise ConfigError("capture", GRAPH, "the lookup waits for the host, which gathers rows; use capture=none")
    if captured and plan.device.type != "cuda":
        raise ConfigError("capture", GRAPH, f"needs a CUDA device, and this is {plan.device}; use capture=none")
    if plan.config.schedule.chunk_tokens is not None:
        _check_chunks(plan)
    if captured and not plan.pins:
        raise ConfigError("capture", GRAPH, "a pageable upload waits for its copy: upload=pinned, or capture=none")


def _check_chunks(plan: Plan) -> None:
    """Refuse components that a pipeline cannot chain."""
    chunk_tokens = plan.config.schedule.chunk_tokens
    projection: Any = kind_of(get_class(plan.config.projection._target_), Projection)
    if projection.kv_buffers > 1:
        remedy = "the projection must fill one kept buffer: projection=fused, or schedule=serial"
        raise chunks_refused(chunk_tokens, remedy)
    lookup, upload = _kinds(plan)
    if lookup.keeps_rows:
        raise chunks_refused(chunk_tokens, "each chunk of the ring would have a cache of its own; use schedule=serial")
    if works_alone(plan.stages):  # an upload takes whole batches
        return
    if plan.has_link and (not plan.pins or upload.fresh):
        other = "" if lookup.fresh else "upload=pinned, or "
        remedy = f"a copy must not keep the host waiting, nor end in other memory: {other}schedule=serial"
        raise chunks_refused(chunk_tokens, remedy)
