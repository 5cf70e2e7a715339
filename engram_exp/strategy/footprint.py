"""What a run keeps in host and device memory, known before anything is allocated. All sizes in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engram_exp.errors import DoesNotFitError
from engram_exp.stage import Load, Task
from engram_exp.strategy.plan import overlapping
from engram_exp.vocabulary import DEVICE, HOST, TOKEN_IDS, WHOLES


@dataclass(frozen=True)
class Footprint:
    """Kept memory of a run, or of one of its ranks: the table, or its share of one, the weights, and what each stage
    reads and leaves behind."""

    host_bytes: int
    device_bytes: int
    table_bytes: int
    table: str = HOST

    def plus(self, other: Footprint) -> Footprint:
        """Both of them. Where their tables lie apart, no one place has them."""
        host, device = self.host_bytes + other.host_bytes, self.device_bytes + other.device_bytes
        table = self.table if self.table == other.table else ""
        return Footprint(host, device, self.table_bytes + other.table_bytes, table)


@dataclass(frozen=True)
class Ring:
    """The stages of a pipeline, those of the longest whole, and the chunks that have buffers at a time."""

    tasks: Sequence[Task]
    chunk_tokens: int
    depth: int


def footprint(
    load: Load, tasks: Sequence[Task], made_up: Sequence[Task], rotating: Sequence[Task], ring: Ring | None = None
) -> Footprint:
    """What a run keeps in host and device memory.

    Args:
        load: of any of its stages, for what is asked of all of them.
        tasks: the stages that are built for whole batches.
        made_up: those of them whose input is made up, and kept, too.
        rotating: those of them that keep the inputs of every batch, beside the token ids.
        ring: of the pipeline, if there is one.
    """
    kept = Counter({HOST: load.batches * load.bytes_of(TOKEN_IDS), DEVICE: 0})
    for kind, asked in tasks:
        kept.update(kind.keeps(asked))
    for _, asked in made_up:
        if asked.stage.needs != TOKEN_IDS:
            kept[asked.stage.read_from] += asked.bytes_of(asked.stage.needs)
    for _, asked in rotating:
        if asked.stage.needs != TOKEN_IDS:
            kept[asked.stage.read_from] += asked.batches * asked.bytes_of(asked.stage.needs)
    for task in _ring_buffers(ring, load.tokens) if ring else ():
        kept.update(task.kind.keeps(task.load))
    everything = [*tasks, *(ring.tasks if ring else [])]
    for shares in {asked.stage.name: kind.shares(asked) for kind, asked in everything}.values():
        kept.update(shares)
    kept_of_table = round(load.among.table_share * load.geometry.table_bytes)
    table_bytes = kept_of_table if any(kind.reads_table for kind, _ in everything) else 0
    return Footprint(kept[HOST], kept[DEVICE], table_bytes, load.table)


def _ring_buffers(ring: Ring, tokens: int) -> Iterator[Task]:
    """What each stage of a pipeline keeps: those before the first that takes chunks, and those that deliver what a
    whole ends with, everything; the one that works beside others and the one before it, a ring of chunks."""
    stages = [task.load.stage for task in ring.tasks]
    first, beside = overlapping(stages)
    for number, (stage, task) in enumerate(zip(stages, ring.tasks, strict=True)):
        delivers = stage.makes in WHOLES.values() and all(after.makes != stage.makes for after in stages[number + 1 :])
        if number < first or delivers:
            yield task.of_tokens(tokens)
        elif number in (beside - 1, beside):
            yield task.of_tokens(ring.depth * ring.chunk_tokens)
        else:
            yield task.of_tokens(ring.chunk_tokens)


def check_fits(
    needed: Footprint, free_host: int, free_device: int | None, table_scale: float, numa: int | str | None = None
) -> None:
    """Refuse what does not fit.

    Args:
        needed: memory.
        free_host, free_device: bytes; None where the CPU stands in for the device, and both sides share the host.
        table_scale: of the table that was counted.
        numa: what the run is bound to, if it takes its host memory from one node.

    Raises:
        DoesNotFitError: with the bytes needed and free, and the `table_scale` that would fit if there is one.
    """
    host, on_device, table = needed.host_bytes, needed.device_bytes, needed.table
    if free_device is None:
        host, on_device, table, free_device = host + on_device, 0, HOST, 0
    for where, wanted, free in ((HOST, host, free_host), (DEVICE, on_device, free_device)):
        if wanted > free:
            rest = wanted - needed.table_bytes
            if where == table and needed.table_bytes and rest < 0.9 * free:
                scale = (0.9 * free - rest) / needed.table_bytes * table_scale
                remedy = f"model.table_scale={scale:.2g} would fit"
            elif where == table and needed.table_bytes > free:
                below = f"model.table_scale below {free / needed.table_bytes * table_scale:.2g}"
                remedy = f"{below}, and a smaller batch_size or seq_len, would need less"
            else:
                remedy = "a smaller batch_size or seq_len would need less"
            if where == HOST and numa is not None:
                remedy += f", and hardware.numa={numa} leaves the memory of one node, null that of all"
            raise DoesNotFitError(where, wanted, free, remedy)
