"""A table in the user's own checkpoint: tensors of a safetensors file, or of a folder of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from engram_exp.errors import ConfigError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import OpenFile
from engram_exp.steps.tables.on_disk import DiskTable, Extent

SUFFIX = ".safetensors"
DTYPES = {  # as a file calls them, and bytes of an element: what rows may be stored in
    torch.float32: ("F32",), torch.float16: ("F16",), torch.bfloat16: ("BF16",),
    torch.uint8: ("F8_E4M3", "F8_E8M0", "U8", "I8"),
}  # fmt: skip
ELEMENT_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
MOST_NAMED = 12  # tensors, in a message


class Found(NamedTuple):
    """A tensor of a file: where it begins, and what it is."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class CheckpointTable(DiskTable):
    """Rows that are in tensors [rows, width] of a checkpoint, which is only read.

    Args:
        rows: of the table.
        row_format: how they are stored.
        placement: of what stays in memory.
        layer: of the model, which stands for `{layer}` in the names of tensors.
        checkpoint: a safetensors file, or a folder of them.
        values: the name of the tensor of whole rows, or of the values of split ones.
        scales: of the tensor of their scales; null: rows are in one tensor.
        resident_scales: as `DiskTable` has it.

    Raises:
        ConfigError: the checkpoint cannot be read, or does not hold such tensors: what it holds is told; or as
            `DiskTable`.
        DoesNotFitError: as `DiskTable`.
    """

    is_found = True  # what stands in it does not follow from a seed

    def __init__(
        self,
        rows: int,
        row_format: RowFormat,
        placement: Placement,
        layer: int,
        checkpoint: Path,
        values: str,
        scales: str | None,
        resident_scales: bool,
    ) -> None:
        names = {"values": values, **({} if scales is None else {"scales": scales})}
        if len(names) != len(row_format.part_widths):
            remedy = "rows are in one piece: null" if scales else "rows are split: name the tensor of their scales"
            raise ConfigError("table.scales", scales or "null", f"{remedy} (dtype.layout)")
        held = tensors_of(Path(checkpoint).expanduser())
        parts = []
        for (key, name), width in zip(names.items(), row_format.part_widths, strict=True):
            parts.append(_tensor(held, key, name.replace("{layer}", str(layer)), rows, width, row_format.storage_dtype))
        paths = list(dict.fromkeys(part.path for part in parts))
        files = [OpenFile(str(path), path.stat().st_size) for path in paths]
        item_bytes = row_format.storage_dtype.itemsize
        extents = [Extent(paths.index(part.path), part.offset, part.shape[1] * item_bytes) for part in parts]
        super().__init__(rows, row_format, files, extents, resident_scales)

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, read one by one."""
        row_bytes = sum(extent.row_bytes for extent in self.extents)
        rows = np.empty((row_ids.numel(), row_bytes), dtype=np.uint8)
        for index, row in enumerate(row_ids.flatten().tolist()):
            first = index * row_bytes
            for number, offset, part_bytes in self.extents:
                self.files[number].finish(rows.reshape(-1), (offset + row * part_bytes, part_bytes, first), 0)
                first += part_bytes
        return torch.from_numpy(rows).view(self.row_format.storage_dtype).view(*row_ids.shape, -1)


def tensors_of(checkpoint: Path) -> dict[str, Found]:
    """The tensors of a safetensors file, or of all in a folder, by name.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    paths = sorted(checkpoint.glob(f"*{SUFFIX}")) if checkpoint.is_dir() else [checkpoint]
    if not paths:
        raise ConfigError("table.checkpoint", checkpoint, f"holds no *{SUFFIX}")
    found: dict[str, Found] = {}
    for path in paths:
        try:
            found.update(_tensors_in(path))
        except (OSError, SafetensorError) as error:
            raise ConfigError("table.checkpoint", path, f"is no safetensors file that can be read ({error})") from error
    return found


def _tensors_in(path: Path) -> Iterator[tuple[str, Found]]:
    """Tensors lie behind the header in order and without gaps, up to the end: so their places follow from sizes."""
    with safe_open(path, framework="numpy") as file:
        told = [(name, (part := file.get_slice(name)).get_dtype(), part.get_shape()) for name in file.offset_keys()]
    sizes = [int(np.prod(shape, dtype=np.int64)) * ELEMENT_BYTES.get(dtype, 1) for _, dtype, shape in told]
    offset = os.stat(path).st_size - sum(sizes)
    for (name, dtype, shape), size in zip(told, sizes, strict=True):
        yield name, Found(path, offset, dtype, tuple(shape))
        offset += size


def _tensor(held: dict[str, Found], key: str, name: str, rows: int, width: int, dtype: torch.dtype) -> Found:
    """The tensor of a name, if it is one of such rows.

    Raises:
        ConfigError: saying what the checkpoint holds instead.
    """
    wanted = f"{' or '.join(DTYPES[dtype])} [{rows}, {width}]"
    if name not in held:
        tables = sorted(held, key=lambda other: -int(np.prod(held[other].shape, dtype=np.int64)))[:MOST_NAMED]
        told = ", ".join(f"{other} {held[other].dtype} {list(held[other].shape)}" for other in tables)
        more = f", and {len(held) - len(tables)} smaller ones" if len(held) > len(tables) else ""
        raise ConfigError(f"table.{key}", name, f"is not there, and {wanted} is wanted; it has {told}{more}")
    found = held[name]
    if found.dtype not in DTYPES[dtype] or found.shape != (rows, width):
        remedy = f"is {found.dtype} {list(found.shape)}, and {wanted} follows from model and dtype"
        raise ConfigError(f"table.{key}", name, remedy)
    return found
