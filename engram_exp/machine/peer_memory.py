"""Memory that the ranks of one host read of each other.

In host memory, each rank's is a file without a name (memfd_create(2)), which the others map: it is gone when the last
process that has it ends, however that ends. In device memory it is PyTorch's symmetric memory.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar
from weakref import WeakSet

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.ranks import Ranks

NO_MULTICAST = "TORCH_SYMM_MEM_DISABLE_MULTICAST"  # nothing here needs it, and not every host can do it


class SharedHostMemory:
    """Host memory of each rank, mapped by all ranks of its host.

    Args:
        size_bytes: of this rank's own; may be 0.
        ranks: that build theirs at the same time.
        huge_pages: ask for 2 MiB pages, which the kernel grants where `shmem_enabled` of its transparent huge pages
            says so.

    of_ranks: bytes of each, uint8 [size_bytes]; none of a rank on another host.
    """

    def __init__(self, size_bytes: int, ranks: Ranks, *, huge_pages: bool) -> None:
        descriptor = os.memfd_create("engram_exp")
        try:
            os.ftruncate(descriptor, size_bytes)
            told = ranks.gather((os.getpid(), descriptor, size_bytes))
            here = range(ranks.first_of_host, ranks.first_of_host + ranks.local_size)
            self.memories = [
                self._map(*other, huge_pages=huge_pages) if rank in here and other[-1] else None
                for rank, other in enumerate(told)
            ]
            ranks.agree()  # nobody closes what another has not mapped yet
        finally:
            os.close(descriptor)
        nothing = torch.empty(0, dtype=torch.uint8)
        self.of_ranks = [nothing if memory is None else memory.bytes for memory in self.memories]

    @staticmethod
    def _map(process: int, descriptor: int, size_bytes: int, *, huge_pages: bool) -> HostMemory:
        opened = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
        try:
            return HostMemory(size_bytes, huge_pages=huge_pages, file=opened)
        finally:
            os.close(opened)

    def pin(self) -> None:
        """Register all of it with this process's driver.

        Raises:
            RegistrationError: with the driver's reason.
        """
        for memory in filter(None, self.memories):
            memory.pin()

    def huge_page_share(self) -> float | None:
        """Share of the first rank's memory that lies in 2 MiB pages here; None where the kernel does not tell."""
        first = next(filter(None, self.memories), None)
        return first.huge_page_share() if first else None


class SymmetricMemory:
    """Device memory of each rank, as large as the largest, readable by the kernels of all.

    Args:
        size_bytes: of the largest.
        ranks: one GPU each, of one host.
        device: of this rank.

    of_ranks: uint8 [size_bytes] each.
    kept: all of it that this process has.
    """

    kept: ClassVar[WeakSet[SymmetricMemory]] = WeakSet()

    def __init__(self, size_bytes: int, ranks: Ranks, device: torch.device) -> None:
        require_peer_access(ranks)
        os.environ.setdefault(NO_MULTICAST, "1")
        import torch.distributed._symmetric_memory as symmetric

        own_device = torch.device(device.type, torch.accelerator.current_device_index())
        self.own = symmetric.empty(size_bytes, dtype=torch.uint8, device=own_device)
        self.handle: Any = symmetric.rendezvous(self.own, ranks.group)  # must outlive what reads
        self.of_ranks = [
            self.own if rank == ranks.rank else self.handle.get_buffer(rank, (size_bytes,), torch.uint8)
            for rank in range(ranks.size)
        ]
        self.kept.add(self)

    @classmethod
    def kept_bytes(cls) -> int:
        """Of this rank's device memory, what PyTorch's allocator does not count."""
        return sum(memory.own.nbytes for memory in cls.kept)


def require_peer_access(ranks: Ranks) -> None:
    """Refuse GPUs that cannot read each other's memory.

    Raises:
        ConfigError: naming the first that this one cannot read.
    """
    for other in _denied(ranks):
        denied = f"the driver denies GPU {ranks.local_rank} the memory of GPU {other}"
        raise ConfigError("exchange", None, f"{denied}; exchange=all_gather would work")


def has_peer_access(ranks: Ranks) -> bool:
    """Whether the GPUs of all ranks can read each other's memory; all of them ask together."""
    return not ranks.agree(numbers=(float(len(_denied(ranks))),))[0]


def _denied(ranks: Ranks) -> list[int]:
    """GPUs of this host whose memory this rank's cannot read."""
    others = (other for other in range(ranks.local_size) if other != ranks.local_rank)
    return [other for other in others if not torch.cuda.can_device_access_peer(ranks.local_rank, other)]
