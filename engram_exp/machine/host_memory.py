"""Host memory whose pages one can choose: ordinary or 2 MiB, pageable or pinned.

PyTorch's own pinned memory comes in powers of two and in 4 KiB pages; here it is mapped, asked to be huge, and
registered with the driver.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import torch

from engram_exp.errors import RegistrationError

SMAPS = Path("/proc/self/smaps")
PORTABLE_AND_MAPPED = 1 | 2  # cudaHostRegisterPortable, cudaHostRegisterMapped


class HostMemory:
    """Anonymous memory of this process, or a file's in memory that others map, too.

    Args:
        size_bytes: of the memory.
        huge_pages: ask the kernel for 2 MiB pages, which spare a random row most of its address translation; it may
            grant none. Otherwise ask it for ordinary ones, whatever its default is.
        file: descriptor of that file, which may be closed behind this; None: the memory is this process's alone.
    """

    pinned_bytes = 0  # of all instances now ...
    peak_pinned_bytes = 0  # ... and at most

    def __init__(self, size_bytes: int, *, huge_pages: bool, file: int | None = None) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if file is None else mmap.MAP_SHARED
        self.pages = _Pages(-1 if file is None else file, max(1, size_bytes), flags=flags)
        with suppress(OSError):  # a kernel without huge pages
            self.pages.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
        self.bytes = torch.frombuffer(self.pages, dtype=torch.uint8)

    def pin(self) -> None:
        """Register the memory with the CUDA driver until nothing refers to it any more. Pages that have been written
        before are pinned in a fraction of the time.

        Raises:
            RegistrationError: with the driver's reason.
        """
        address, size_bytes = self.bytes.data_ptr(), len(self.pages)
        cuda = torch.cuda.cudart()
        error = cuda.cudaHostRegister(address, size_bytes, PORTABLE_AND_MAPPED)
        if int(error) != 0:
            reason = cuda.cudaGetErrorString(error)
            raise RegistrationError(
                f"the driver refuses to pin {size_bytes / 1e9:.2f} GB of host memory ({reason}): raise the limit of "
                "locked memory (ulimit -l), or do without: table=pageable upload=pageable schedule=serial"
            )
        self.pages.pinned_address = address
        HostMemory.pinned_bytes += size_bytes
        HostMemory.peak_pinned_bytes = max(HostMemory.peak_pinned_bytes, HostMemory.pinned_bytes)

    def huge_page_share(self) -> float | None:
        """Share of the memory that lies in 2 MiB pages; None where the kernel does not tell."""
        try:
            lines = SMAPS.read_text().splitlines()
        except OSError:
            return None
        return _huge_page_share(lines, self.bytes.data_ptr())


class _Pages(mmap.mmap):
    """Mapped memory that is unregistered before it is unmapped."""

    pinned_address: int | None = None

    def __del__(self) -> None:
        if self.pinned_address is not None:
            torch.cuda.cudart().cudaHostUnregister(self.pinned_address)
            HostMemory.pinned_bytes -= len(self)


def _huge_page_share(smaps: list[str], address: int) -> float | None:
    """Of the mapping that holds an address (proc_pid_smaps(5))."""
    inside, sizes = False, {"Size": 0, "AnonHugePages": 0, "ShmemPmdMapped": 0}
    for line in smaps:
        name, _, value = line.partition(":")
        if inside and name in sizes:
            sizes[name] = int(value.split()[0])
        first, _, last = line.split(" ", 1)[0].partition("-")
        if last and not first.endswith(":"):
            if inside:
                break
            inside = int(first, 16) <= address < int(last, 16)
    huge = sizes["AnonHugePages"] + sizes["ShmemPmdMapped"]
    return huge / sizes["Size"] if sizes["Size"] else None
