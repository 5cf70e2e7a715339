"""What the wholes run: all stages of a strategy up to keys and value, or up to the hidden state, as scheduled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from engram_exp.config.derived import GRAPH, capture_of
from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement
from engram_exp.run.batches import pinned
from engram_exp.run.parts import Parts
from engram_exp.stage import BuiltStage, PlannedStage, Strategy, Tensors
from engram_exp.strategy.plan import overlapping, works_alone
from engram_exp.strategy.schedule import Chunk, Cut, Graph, Pipeline, Replay
from engram_exp.vocabulary import FULL, HIDDEN, KV

WholeRun = Callable[[Batch], Tensors]


def build_whole_run(
    parts: Parts, case: str, stages: Mapping[str, BuiltStage], chunks: ChunkStages | None = None
) -> WholeRun:
    """What is called on a batch and returns what a whole ends with, on the device: keys [T, M, C] and value [T, C], or
    the hidden state [T, M, C].

    Args:
        parts: of the run.
        case: the whole.
        stages: those that were built for single cases.
        chunks: what a pipeline is built from instead; None: its own.
    """
    plan = parts.plan
    run: Callable[[Any], Tensors]
    if plan.cuts is not None:
        run = (chunks or ChunkStages(parts)).pipeline(plan.whole(case))
    else:
        run = Strategy([stages[stage.name] for stage in plan.whole(case)])
    if capture_of(plan.config) == GRAPH and plan.device.type == "cuda":
        return Graph(run, pinned(plan, parts.batches[:1])[0])
    return run


class ChunkStages:
    """The stages of a pipeline's chunks, which all wholes share.

    The stage that works beside others, and the one before it, write into a ring of buffers; those that deliver what a
    whole ends with, into their chunk's part of all of it.

    Args:
        parts: of a run that is cut into chunks.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.plan = parts, parts.plan
        assert self.plan.cuts is not None
        self.cuts: Sequence[Cut] = self.plan.cuts
        self.ring_depth = min(self.plan.config.schedule.ring_depth, len(self.cuts))
        self.on_device = works_alone(self.plan.stages)
        self.first, self.beside = overlapping(self.plan.stages)
        self.of_batches = [self.parts.stage(stage) for stage in self.plan.stages[: self.first]]
        self.built: list[list[BuiltStage]] = [[] for _ in self.cuts]  # so far, of each chunk
        self.delivered: dict[str, torch.Tensor] = {}  # by value, [T, vectors, C]

    def pipeline(self, planned: Sequence[PlannedStage]) -> WholeRun:
        """All chunks through these stages."""
        for stage in planned[self.first + len(self.built[0]) :]:
            self._add(stage)
        chunks = [self._chunk(*of_chunk, len(planned)) for of_chunk in zip(self.cuts, self.built, strict=True)]
        result, whole = self._result(planned[-1].makes), Strategy(self.of_batches) if self.on_device else None
        return Pipeline(chunks, self.ring_depth, self.plan.device, result, whole)

    def _chunk(self, piece: Cut, built: Sequence[BuiltStage], end: int) -> Chunk:
        """The stages that a chunk passes, up to the one before number `end`."""
        stages, at = built[: end - self.first], self.beside - self.first
        before, beside, behind = (Strategy(some) for some in (stages[:at], stages[at : at + 1], stages[at + 1 :]))
        replays = self.plan.device.type == "cuda" and not self.on_device and behind.stages
        cut_out = piece.of_row_ids if self.on_device else piece.of
        return Chunk(cut_out, before, beside, Replay(behind) if replays else behind)

    def _add(self, stage: PlannedStage) -> None:
        """Build a stage for every chunk."""
        if stage == self.plan.whole(FULL)[-1] or stage.makes == HIDDEN:
            width = self.plan.geometry.hc_mult + (stage.makes == KV)
            shape = self.plan.tokens, width, self.plan.geometry.hidden_size
            self.delivered[stage.makes] = Placement(self.plan.device).empty(*shape, dtype=self.plan.dtype)
            first = 0
            for piece, built in zip(self.cuts, self.built, strict=True):
                built.append(self._delivering(stage, piece, first))
                first += piece.tokens
            return
        number, chunk_tokens = self.first + len(self.built[0]), max(piece.tokens for piece in self.cuts)
        copies = self.ring_depth if number in (self.beside - 1, self.beside) else 1
        ring = [self.parts.stage(stage, chunk_tokens, beside=self.on_device) for _ in range(copies)]
        for chunk, built in enumerate(self.built):
            built.append(ring[chunk % copies])

    def _delivering(self, stage: PlannedStage, piece: Cut, first: int) -> BuiltStage:
        """A stage that writes what it makes of a chunk, whose first token this is, to its place."""
        end = first + piece.tokens
        part = Placement(self.plan.device, buffer=self.delivered[stage.makes][first:end])
        if stage.makes != HIDDEN:
            return self.parts.stage(stage, piece.tokens, part)
        lead = min(piece.positions.start, self.plan.geometry.conv_reach)  # what its convolution reads is there already
        keys, value = (tensor[first - lead : end] for tensor in self._result(KV))
        hidden, *history = self.parts.model_state.brought(self.plan.task(stage))
        brought = hidden[first - lead : end], *(tensor[piece.sequences] for tensor in history)
        built = self.parts.stage(stage, piece.tokens, part, brought, lead)
        return replace(built, run=lambda _: built.run((keys, value)))

    def _result(self, value: str) -> Tensors:
        whole = self.delivered[value]
        return (whole[:, :-1], whole[:, -1]) if value == KV else (whole,)
