"""What the case `full` runs: all stages of a strategy, scheduled as configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement
from engram_exp.run.parts import Builder
from engram_exp.stage import Stage, Strategy, Tensors
from engram_exp.strategy.schedule import Chunk, Graph, Pipeline, Replay, cut
from engram_exp.vocabulary import UPLOADS

WholeRun = Callable[[Batch], Tensors]


def build_whole_run(builder: Builder, stages: Mapping[str, Stage]) -> WholeRun:
    """What is called on a batch and returns keys [T, M, C] and value [T, C] on the device.

    Args:
        builder: of the run.
        stages: those that were built for single cases; a pipeline builds its own.
    """
    if builder.pipelined:
        return _build_pipeline(builder)
    strategy = Strategy([stages[stage.name] for stage in builder.active])
    if builder.config.capture == "graph" and builder.device.type == "cuda":
        return Graph(strategy, builder.pinned(builder.batches[:1])[0])
    return strategy


def check_schedule(builder: Builder) -> None:
    """Refuse components that a pipeline cannot chain, and a graph where there are none.

    Raises:
        ConfigError: naming the key.
    """
    if builder.config.capture == "graph" and builder.device.type != "cuda":
        raise ConfigError("capture", "graph", f"needs a CUDA device, and this is {builder.device}; use capture=none")
    if builder.config.capture == "graph" and not builder.pins:
        raise ConfigError("capture", "graph", "a pageable upload waits for its copy: upload=pinned, or capture=none")
    if not builder.pipelined:
        return
    if builder.kv_buffers > 1:
        remedy = "the projection must fill one kept buffer: projection=fused, or schedule=serial"
        raise ConfigError("schedule", "pipelined", remedy)
    if builder.device.type != "cpu" and not builder.pins:
        remedy = "a copy must not keep the host waiting: upload=pinned, or schedule=serial"
        raise ConfigError("schedule", "pipelined", remedy)


def _build_pipeline(builder: Builder) -> Pipeline:
    """Stages next to the link write into a ring of buffers, the last one into its chunk's part of the whole."""
    config, device, names = builder.config, builder.device, [stage.name for stage in builder.active]
    assert builder.chunk_tokens is not None
    cuts = cut(config.batch_size, config.seq_len, builder.chunk_tokens)
    ring_depth, chunk_tokens = min(config.schedule.ring_depth, len(cuts)), max(piece.tokens for piece in cuts)
    crossing = next((index for index, name in enumerate(names) if name in UPLOADS), len(names))
    rings = []
    for index, name in enumerate(names[:-1]):
        copies = ring_depth if index in (crossing - 1, crossing) else 1
        rings.append([builder.stage(name, chunk_tokens) for _ in range(copies)])
    whole = Placement(device).empty(builder.tokens, builder.geometry.kv_width, dtype=builder.dtype)
    chunks, first = [], 0
    for number, piece in enumerate(cuts):
        part = Placement(device, buffer=whole[first : first + piece.tokens])
        first += piece.tokens
        stages = [ring[number % len(ring)] for ring in rings] + [builder.stage(names[-1], piece.tokens, part)]
        upload = stages[crossing] if crossing < len(names) else None
        on_host, on_device = Strategy(stages[:crossing]), Strategy(stages[crossing + 1 :])
        replays = device.type == "cuda" and on_device.stages
        chunks.append(Chunk(piece, on_host, upload, Replay(on_device) if replays else on_device))
    kv = whole.view(builder.tokens, -1, builder.geometry.hidden_size)
    return Pipeline(chunks, ring_depth, device, (kv[:, :-1], kv[:, -1]))
