"""Rows in a file: a header of one block, and for each part of a row an array [rows, width of the part] behind it.

A file is made once and then only read. Its name follows from what is in it, so that tables of other models, layers or
seeds lie beside it; it gets that name when all of it is written, and nothing is ever written over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.disk import IN_MEMORY, file_system, free_bytes
from engram_exp.steps.tables.on_disk import Extent

log = logging.getLogger(__name__)

MAGIC = b"engram-exp rows\n"
VERSION = 1
BLOCK_BYTES = 4096  # the header's; parts and the end of the file are multiples of it
SAMPLED_ROWS = 256  # that are read when a file is checked, the first and the last among them
FILLED_BYTES = 2**26  # at a time, while as many are written
DELETE = "delete it to have it made anew, or use another folder"


class RowFile:
    """A file of rows below a folder, and what must be in it.

    Args:
        folder: where it lies.
        rows: of the table.
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
    """

    def __init__(self, folder: Path, rows: int, row_format: RowFormat, seed: int) -> None:
        self.folder, self.rows, self.row_format, self.seed = folder, rows, row_format, seed
        itemsize = row_format.storage_dtype.itemsize
        self.extents: list[Extent] = []
        end = BLOCK_BYTES
        for width in row_format.part_widths:
            self.extents.append(Extent(0, end, width * itemsize))
            end += -(-rows * width * itemsize // BLOCK_BYTES) * BLOCK_BYTES
        self.size_bytes = end
        self.told = {
            "version": VERSION, "rows": rows, "values": row_format.values, "seed": seed,
            "dtype": str(row_format.storage_dtype).removeprefix("torch."), "part_widths": list(row_format.part_widths),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"rows-{digest}.table"

    def ready(self) -> None:
        """See that the file is there and holds what it must; make it if there is none.

        Raises:
            ConfigError: it is not ours, damaged or of something else; or it cannot be made.
        """
        if not self.path.exists():
            self._make()
        self._check()

    def _check(self) -> None:
        with self._failing("cannot be read"), self.path.open("rb") as file:
            head = file.read(BLOCK_BYTES)
            size = os.fstat(file.fileno()).st_size
        if not head.startswith(MAGIC):
            raise self._refused("is no table of this program, which leaves it alone; move it, or use another folder")
        try:
            told = json.loads(head[len(MAGIC) :].rstrip(b"\0"))
            digest = told.pop("digest")
        except (ValueError, KeyError, AttributeError) as error:
            raise self._refused(f"has a damaged header; {DELETE}") from error
        if told != self.told:
            differing = ", ".join(f"{key} {told.get(key)}" for key in self.told if told.get(key) != self.told[key])
            raise self._refused(f"holds another table ({differing}); {DELETE}")
        if size != self.size_bytes:
            raise self._refused(f"has {size:,} bytes instead of {self.size_bytes:,}; {DELETE}")
        if not digest == self._digest(self._sampled()) == self._digest(self._stored()):
            raise self._refused(f"holds other rows than it should; {DELETE}")

    @property
    def _sample(self) -> torch.Tensor:
        return torch.linspace(0, self.rows - 1, SAMPLED_ROWS, dtype=torch.float64).round().long().unique()

    def _sampled(self) -> bytes:
        """Some rows as they should be."""
        return self.row_format.contents(self._sample, self.seed).view(torch.uint8).numpy().tobytes()

    def _stored(self) -> bytes:
        """The same as the file has them."""
        with self._failing("cannot be read"), self.path.open("rb", buffering=0) as file:
            return b"".join(
                os.pread(file.fileno(), extent.row_bytes, extent.offset + row * extent.row_bytes)
                for row in self._sample.tolist()
                for extent in self.extents
            )

    def _digest(self, rows: bytes) -> str:
        return hashlib.sha256(rows).hexdigest()

    def _make(self) -> None:
        """Write the file under another name, which it loses when all of it is on the disk. Whoever else wants the same
        waits; what a killed process has left is begun anew."""
        partial = self.folder / f".{self.path.name}.partial"
        with self._failing("cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self.path.exists():  # another has made it meanwhile
                    if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
                        partial.unlink()
                    return
                if os.pread(descriptor, len(MAGIC), 0) not in (b"", MAGIC, bytes(len(MAGIC))):
                    raise self._refused(f"{partial.name} beside it is no file of this program; move it")
                self._fill(descriptor)
                os.link(partial, self.path)  # unlike a renaming, it never replaces what has come there
                partial.unlink()
            finally:
                os.close(descriptor)

    def _fill(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        free = free_bytes(self.folder)
        if free < self.size_bytes:
            fitting = f"{0.9 * free / self.size_bytes:.2g} of model.table_scale would fit, or another folder"
            remedy = f"{self.size_bytes / 1e9:.2f} GB are needed on its disk, {free / 1e9:.2f} GB are free: {fitting}"
            raise ConfigError("table.path", self.folder, remedy)
        if file_system(self.folder)[0] in IN_MEMORY:
            log.warning("table.path=%s lies in memory, and on no disk", self.folder)
        began = time.perf_counter()
        os.pwrite(descriptor, MAGIC, 0)
        os.posix_fallocate(descriptor, 0, self.size_bytes)
        with ThreadPoolExecutor(1) as writer:
            under_way: list[Future[None]] = []
            for first, parts in self._filled():
                for future in under_way:
                    future.result()  # so that the other buffer may be filled while this one is written
                under_way = [writer.submit(self._write, descriptor, first, parts)]
            for future in under_way:
                future.result()
        os.pwrite(descriptor, MAGIC + json.dumps({**self.told, "digest": self._digest(self._sampled())}).encode(), 0)
        os.fsync(descriptor)
        log.info("wrote %s, %.2f GB, in %.1f s", self.path, self.size_bytes / 1e9, time.perf_counter() - began)

    def _filled(self) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Stretches of rows: the number of the first, and the parts of all, in two buffers that take turns."""
        row_bytes = sum(extent.row_bytes for extent in self.extents)
        at_a_time, dtype = max(1, FILLED_BYTES // row_bytes), self.row_format.storage_dtype
        buffers = [
            tuple(torch.empty(min(self.rows, at_a_time), width, dtype=dtype) for width in self.row_format.part_widths)
            for _ in range(2)
        ]
        for number, first in enumerate(range(0, self.rows, at_a_time)):
            parts = tuple(part[: self.rows - first] for part in buffers[number % 2])
            self.row_format.fill(parts, self.seed, first)
            yield first, parts

    def _write(self, descriptor: int, first: int, parts: tuple[torch.Tensor, ...]) -> None:
        for extent, part in zip(self.extents, parts, strict=True):
            left, at = part.view(torch.uint8).numpy().reshape(-1).data, extent.offset + first * extent.row_bytes
            while left:
                written = os.pwrite(descriptor, left, at)
                left, at = left[written:], at + written

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Say of an error of the system what it was about."""
        try:
            yield
        except OSError as error:
            raise self._refused(f"{what} ({error.strerror}); table.path=FOLDER takes another folder") from error

    def _refused(self, remedy: str) -> ConfigError:
        return ConfigError("table.path", self.path, remedy)
