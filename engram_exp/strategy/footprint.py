"""What a strategy keeps in host and device memory, known before anything is allocated. All sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engram_exp.errors import DoesNotFitError
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.strategy.plan import PlannedStage
from engram_exp.vocabulary import DEVICE, HOST, LINK


@dataclass(frozen=True)
class Footprint:
    """Kept memory of a run: the table, the weights, and what each stage reads and leaves behind."""

    host_bytes: int
    device_bytes: int
    table_bytes: int
    table: str = HOST


@dataclass(frozen=True)
class Ring:
    """A pipeline's stages, and the chunks that have buffers at a time."""

    stages: Sequence[PlannedStage]
    chunk_tokens: int
    depth: int


def footprint(
    geometry: EngramGeometry,
    stages: Sequence[PlannedStage],
    made_up: Sequence[str],
    shape: tuple[int, int],
    batches: int,
    kv_buffers: int,
    table: str = HOST,
    ring: Ring | None = None,
) -> Footprint:
    """What a run keeps in host and device memory.

    Args:
        geometry: of the layer.
        stages: those that are built for whole batches.
        made_up: names of those whose input is made up, and kept, too.
        shape: B and L.
        batches: distinct token batches; each keeps its ids and row ids.
        kv_buffers: keys and values that the projection holds at a time.
        table: host or device.
        ring: of the pipeline, if there is one.
    """
    sequences, tokens = shape[0], shape[0] * shape[1]
    kept = {HOST: batches * geometry.ids_bytes(tokens, sequences), DEVICE: 0}
    for stage in stages:
        output_bytes = geometry.output_bytes(stage.name, tokens, sequences)
        kept[_side(stage)] += output_bytes
        if stage.name in made_up and stage.place == LINK:
            kept[HOST] += output_bytes
        if stage.name in made_up and stage.name == "projection":
            kept[stage.place] += geometry.embeddings_bytes(tokens)
        if stage.name in made_up and stage.name == "widening":
            kept[stage.place] += geometry.stored_bytes(tokens)
        if stage.name == "lookup":
            kept[stage.place] += batches * geometry.row_ids_bytes(tokens)
            kept[stage.place] += geometry.sort_bytes(tokens) if stage.place == DEVICE else 0
        if stage.name == "projection":
            kept[stage.place] += (kv_buffers - 1) * geometry.kv_bytes(tokens)
    for stage, size_bytes in _ring_buffers(geometry, ring, tokens, sequences) if ring else ():
        kept[_side(stage)] += size_bytes
    everything = [*stages, *(ring.stages if ring else [])]
    for place in {stage.place for stage in everything if stage.name == "projection"}:
        kept[place] += geometry.weights_bytes
        kept[HOST] += geometry.weights_bytes if place == DEVICE else 0
        kept[HOST] += geometry.weights * 4  # in float32, for the reference
    table_bytes = geometry.table_bytes if any(stage.name == "lookup" for stage in everything) else 0
    kept[table] += table_bytes
    return Footprint(kept[HOST], kept[DEVICE], table_bytes, table)


def _ring_buffers(
    geometry: EngramGeometry, ring: Ring, tokens: int, sequences: int
) -> Iterator[tuple[PlannedStage, int]]:
    """What each stage of a pipeline keeps: the last one everything, those next to the link a ring of chunks."""
    for number, stage in enumerate(ring.stages):
        following = ring.stages[number + 1 : number + 2]
        if not following:
            held = tokens
        elif LINK in (stage.place, following[0].place):
            held = ring.depth * ring.chunk_tokens
        else:
            held = ring.chunk_tokens
        yield stage, geometry.output_bytes(stage.name, held, sequences)


def _side(stage: PlannedStage) -> str:
    return DEVICE if stage.place == LINK else stage.place


def check_fits(needed: Footprint, free_host: int, free_device: int, device: torch.device, table_scale: float) -> None:
    """Refuse what does not fit.

    Raises:
        DoesNotFitError: with the bytes needed and free, and the `table_scale` that would fit if there is one.
    """
    host, on_device = needed.host_bytes, needed.device_bytes
    if device.type == "cpu":
        host, on_device = host + on_device, 0
    for where, wanted, free in (("host", host, free_host), ("device", on_device, free_device)):
        if wanted > free:
            rest = wanted - needed.table_bytes
            if where == (HOST if device.type == "cpu" else needed.table) and needed.table_bytes and rest < 0.9 * free:
                scale = (0.9 * free - rest) / needed.table_bytes * table_scale
                remedy = f"model.table_scale={scale:.2g} would fit"
            else:
                remedy = "a smaller batch_size or seq_len would need less"
            raise DoesNotFitError(where, wanted, free, remedy)
