"""What stands in the rows of a table, and how a table is built."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from places import CPU, KERNEL_DEVICE

from engram_exp.errors import RegistrationError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.placement import Placement
from engram_exp.steps.tables import fill_spans
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


ON_KERNEL_DEVICE = Placement(KERNEL_DEVICE)


def host_table(rows, row_format, seed=0, *, huge_pages=False):
    return HostTable(rows, row_format, seed, CPU, huge_pages=huge_pages, pinned=False)


def test_a_device_table_is_filled_in_pieces(monkeypatch):
    monkeypatch.setattr("engram_exp.steps.tables.ROWS_AT_A_TIME", 7)
    for row_format in (RowFormat(5, torch.bfloat16), RowFormat(40, torch.bfloat16, 32, split=True)):
        table = DeviceTable(30, row_format, 3, ON_KERNEL_DEVICE)
        stored = torch.cat([part.cpu() for part in table.parts], dim=1)
        assert torch.equal(stored, table.contents(torch.arange(30)))


def test_stretches_of_growing_length_go_up_through_one_piece_of_memory():
    row_format = RowFormat(4, torch.float16)
    spans = [(0, 3), (10, 5), (40, 7)]
    parts = [torch.empty(15, 4, dtype=torch.float16, device="meta")]  # keeps nothing, but is no host memory
    fill_spans(parts, row_format, 7, spans)


def test_contents_are_finite_the_same_in_every_dtype_and_depend_on_row_and_seed():
    row_ids = torch.arange(1000)
    values = [RowFormat(64, dtype).contents(row_ids, seed=5).float() for dtype in DTYPES]
    assert torch.isfinite(values[0]).all()
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert len(torch.unique(values[0], dim=0)) == 1000
    assert not torch.equal(values[0], RowFormat(64, torch.float32).contents(row_ids, seed=6))
    assert abs(values[0].mean()) < 0.02


def test_fp8_rows_are_finite_and_use_nearly_every_value_and_scale():
    row_format = RowFormat(256, torch.float32, values_per_scale=32)
    stored = row_format.contents(torch.arange(500), seed=1)
    assert stored.dtype == torch.uint8
    assert stored.shape == (500, 264)
    assert torch.isfinite(row_format.widen(stored)).all()
    assert len(torch.unique(stored[:, :256])) == 254, "all e4m3 values but NaN"
    assert stored[:, 256:].float().unique().tolist() == list(range(119, 127))
    packed = row_format.contents(torch.arange(5), seed=1)
    assert torch.equal(packed, RowFormat(256, torch.float32, 32, split=True).contents(torch.arange(5), seed=1))
    one = RowFormat(256, torch.float32, one_scale=0.01)
    stored = one.contents(torch.arange(500), seed=1)
    assert stored.shape == (500, 256)
    assert len(torch.unique(stored)) == 254
    assert one.widen(stored).abs().max() == np.float32(448) * np.float32(0.01)


def test_rows_beyond_32_bits_have_contents():
    assert torch.isfinite(RowFormat(8, torch.float32).contents(torch.tensor([2**33]), 0)).all()


def test_too_few_huge_pages_are_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(HostMemory, "huge_page_share", lambda self: 0.25)
    monkeypatch.setattr("engram_exp.steps.tables.host.SMALL_BYTES", 0)
    table = host_table(10, RowFormat(4, torch.float32), huge_pages=True)
    assert table.huge_page_share == 0.25
    assert "2 MiB pages granted for 25 % of the table" in caplog.text


def test_a_driver_that_refuses_to_pin_is_quoted(monkeypatch):
    driver = SimpleNamespace(cudaHostRegister=lambda *_: 1, cudaGetErrorString=lambda code: f"error {code}")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    placement = Placement(torch.device("cpu"), pinned=True)
    with pytest.raises(
        RegistrationError, match=r"^the driver refuses to pin .* GB .*error 1.*ulimit -l.*table=pageable"
    ):
        HostTable(10, RowFormat(4, torch.float32), 0, placement, huge_pages=False, pinned=True)
