"""What the case `full` runs: all stages of a strategy, scheduled as configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement
from engram_exp.run.parts import Parts
from engram_exp.stage import BuiltStage, Strategy, Tensors
from engram_exp.strategy.schedule import Chunk, Graph, Pipeline, Replay
from engram_exp.vocabulary import LINK

WholeRun = Callable[[Batch], Tensors]


def build_whole_run(parts: Parts, stages: Mapping[str, BuiltStage]) -> WholeRun:
    """What is called on a batch and returns keys [T, M, C] and value [T, C] on the device.

    Args:
        parts: of the run.
        stages: those that were built for single cases; a pipeline builds its own.
    """
    plan = parts.plan
    if plan.cuts is not None:
        return _build_pipeline(parts)
    strategy = Strategy([stages[stage.name] for stage in plan.stages])
    if plan.config.capture == "graph" and plan.device.type == "cuda":
        return Graph(strategy, parts.pinned(parts.batches[:1])[0])
    return strategy


def _build_pipeline(parts: Parts) -> Pipeline:
    """Stages next to the link write into a ring of buffers, the last one into its chunk's part of the whole."""
    plan, device, planned = parts.plan, parts.plan.device, parts.plan.stages
    assert plan.cuts is not None
    ring_depth = min(plan.config.schedule.ring_depth, len(plan.cuts))
    chunk_tokens = max(piece.tokens for piece in plan.cuts)
    crossing = next((index for index, stage in enumerate(planned) if stage.place == LINK), len(planned))
    rings = []
    for index, stage in enumerate(planned[:-1]):
        copies = ring_depth if index in (crossing - 1, crossing) else 1
        rings.append([parts.stage(stage, chunk_tokens) for _ in range(copies)])
    whole = Placement(device).empty(plan.tokens, plan.geometry.kv_width, dtype=plan.dtype)
    chunks, first = [], 0
    for number, piece in enumerate(plan.cuts):
        part = Placement(device, buffer=whole[first : first + piece.tokens])
        first += piece.tokens
        stages = [ring[number % len(ring)] for ring in rings] + [parts.stage(planned[-1], piece.tokens, part)]
        upload = stages[crossing] if crossing < len(planned) else None
        on_host, on_device = Strategy(stages[:crossing]), Strategy(stages[crossing + 1 :])
        replays = device.type == "cuda" and on_device.stages
        chunks.append(Chunk(piece, on_host, upload, Replay(on_device) if replays else on_device))
    kv = whole.view(plan.tokens, -1, plan.geometry.hidden_size)
    return Pipeline(chunks, ring_depth, device, (kv[:, :-1], kv[:, -1]))
