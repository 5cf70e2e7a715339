"""What vendors promise of their GPUs, by the name that the driver gives the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

VARIANTS = ("pcie", "nvl", "max-q", "server")  # of a part: with other memory, link or power


@dataclass
class DataSheet:
    """The peaks of one part: shown beside what is measured, and used for nothing else.

    It types a node of the configuration, too, which the command line may change: so it is not frozen, and OmegaConf
    must know its annotations.

    Args:
        gpu: the words of the device's name that tell the part.
        memory_gb: device memory, which vendors round down.
        memory_gb_per_s: reading or writing device memory.
        link_gb_per_s: between host and device, in one direction.
        tflop_per_s: dense matrix products, by dtype.
    """

    gpu: str
    memory_gb: float
    memory_gb_per_s: float
    link_gb_per_s: float
    tflop_per_s: dict[str, float]


def _rates(half: float, float32: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "float32": float32}


DATA_SHEETS = {  # by the option of `hardware` that asks for the part
    "a100": DataSheet("A100", 80, 2039, 32, _rates(312, 19.5)),  # SXM, PCIe 4 x16
    "b200": DataSheet("B200", 180, 7700, 64, _rates(2250, 75)),  # HGX, PCIe 5 x16
    "gh200": DataSheet("GH200", 96, 4000, 450, _rates(990, 67)),  # HBM3; the link is NVLink-C2C
    "h100": DataSheet("H100", 80, 3350, 64, _rates(989, 67)),  # SXM, PCIe 5 x16
    "h200": DataSheet("H200", 141, 4800, 64, _rates(989, 67)),  # SXM, PCIe 5 x16
    "rtx_pro_6000": DataSheet("RTX PRO 6000", 96, 1792, 64, _rates(504, 125)),  # Blackwell, workstation, PCIe 5 x16
}


def data_sheet_of(name: str, memory_bytes: int) -> DataSheet | None:
    """The data sheet of a device, None where none is known.

    Args:
        name: of the device, as its driver has it.
        memory_bytes: of the device.
    """
    sheets = DATA_SHEETS.values()
    return next((sheet for sheet in sheets if is_of(sheet.gpu, sheet.memory_gb, name, memory_bytes)), None)


def is_of(gpu: str, memory_gb: float, name: str, memory_bytes: int) -> bool:
    """Whether a data sheet is that of a device: of the same part, and of no variant with other memory, link or power.

    Args:
        gpu, memory_gb: of the sheet.
        name, memory_bytes: of the device.
    """
    has_its_memory = 0.95 < memory_bytes / (memory_gb * 1e9) < 1.15
    return _is_called(gpu, name) and has_its_memory


def most_memory_gb(name: str) -> float | None:
    """Memory that a device has at most, 10^9 bytes, by its name alone: as much as stands in that, or in the data sheet
    of its part, if these were 2^30 bytes; None where neither tells.

    Args:
        name: of the device, as its driver has it.
    """
    named = [float(number) for number in re.findall(r"\b(\d+) ?GB?\b", name)]
    known = [sheet.memory_gb for sheet in DATA_SHEETS.values() if _is_called(sheet.gpu, name)]
    return max(named + known) * 2**30 / 1e9 if named + known else None


def _is_called(gpu: str, name: str) -> bool:
    is_variant = any(word in name.lower() and word not in gpu.lower() for word in VARIANTS)
    return bool(re.search(rf"\b{re.escape(gpu)}\b", name)) and not is_variant
