"""Memory of a table: its pages are counted, and so is what is pinned."""

from types import SimpleNamespace

import pytest
import torch

from engram_exp.machine import host_memory
from engram_exp.machine.host_memory import HostMemory, _huge_page_share

SMAPS = """7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      1024 kB
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
Size:               1024 kB
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize(
    ("address", "share"), [(0x7F0000000000, 0.25), (0x7F0000400010, 1.0), (0x7F00008FFFFF, 0.0), (0x10, None)]
)
def test_huge_pages_are_counted_where_the_memory_lies(address, share):
    assert _huge_page_share(SMAPS.splitlines(), address) == share


def test_the_kernel_tells_about_this_process():
    memory = HostMemory(2**22, huge_pages=False)
    memory.bytes.fill_(1)
    assert memory.huge_page_share() == 0, "the kernel was asked for ordinary pages"


def test_pinned_memory_is_counted_and_given_back(monkeypatch):
    calls = []
    driver = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: calls.append(("register", address)) or 0,
        cudaHostUnregister=lambda address: calls.append(("unregister", address)),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    before = host_memory.HostMemory.pinned_bytes
    memory = HostMemory(10_000, huge_pages=False)
    memory.pin()
    address = memory.bytes.data_ptr()
    assert host_memory.HostMemory.pinned_bytes == before + 10_000
    del memory
    assert calls == [("register", address), ("unregister", address)]
    assert host_memory.HostMemory.pinned_bytes == before
