"""A table in a file: made once, checked whenever it is opened, and never written over."""

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from places import CPU

from engram_exp.errors import ConfigError, DoesNotFitError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine import disk
from engram_exp.steps.tables import row_file
from engram_exp.steps.tables.file import FileTable
from engram_exp.steps.tables.row_file import RowFile

PLAIN = RowFormat(24, torch.bfloat16)
SPLIT = RowFormat(40, torch.bfloat16, 32, split=True)


def table_in(folder, rows=1000, row_format=PLAIN, seed=3, resident_scales=False):
    return FileTable(rows, row_format, seed, CPU, folder, resident_scales)


def path_of(table):
    return Path(table.files[0].path)


@pytest.mark.parametrize("row_format", [PLAIN, RowFormat(40, torch.bfloat16, 32), SPLIT])
def test_a_file_is_filled_in_pieces_and_never_sparse(tmp_path, monkeypatch, row_format):
    monkeypatch.setattr(row_file, "FILLED_BYTES", 7 * row_format.width * row_format.storage_dtype.itemsize)
    table = table_in(tmp_path, 500, row_format)
    assert torch.equal(torch.cat(table.parts, dim=1), table.contents(torch.arange(500)))
    told = os.stat(path_of(table))
    assert told.st_size == table.size_bytes
    assert told.st_blocks * 512 >= told.st_size
    assert [path.name for path in tmp_path.iterdir()] == [path_of(table).name]


def test_a_file_is_made_once_and_one_lies_beside_another(tmp_path, monkeypatch):
    tables = [table_in(tmp_path / "new"), table_in(tmp_path / "new", seed=4), table_in(tmp_path / "new", rows=999)]
    paths = {path_of(table) for table in tables}
    assert len(paths) == 3
    monkeypatch.setattr(RowFile, "_fill", lambda *_: pytest.fail("it is written again"))
    assert path_of(table_in(tmp_path / "new")) in paths


def replaced(path, at, content):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: replaced(path, 0, b"x"), "is no table of this program, which leaves it alone"),
        (lambda path: path.write_bytes(b""), "is no table of this program"),
        (lambda path: replaced(path, 20, b"\xff"), "has a damaged header; delete it"),
        (lambda path: os.truncate(path, path.stat().st_size - 4096), "has 49,152 bytes instead of 53,248; delete"),
        (lambda path: os.truncate(path, path.stat().st_size + 1), "has 53,249 bytes instead of 53,248; delete"),
        (lambda path: replaced(path, 4096, b"\xff\xff"), "holds other rows than it should; delete it"),
        (lambda path: replaced(path, 4096 + 999 * 48, b"\xff\xff"), "holds other rows than it should"),
        (lambda path: replaced(path, 0, RowFile(path.parent, 1000, PLAIN, 4).path.read_bytes()[:4096]),
         r"holds another table \(seed 4\); delete it"),
        (lambda path: replaced(path, 0, RowFile(path.parent, 1000, PLAIN, 4).path.read_bytes()),
         r"holds another table \(seed 4\); delete it"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_refused_and_left_alone(tmp_path, damage, told):
    table_in(tmp_path, seed=4)
    path = path_of(table_in(tmp_path))
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"^table\.path={path}: {told}"):
        table_in(tmp_path)
    assert path.read_bytes() == before


def test_what_a_killed_process_has_left_is_begun_anew(tmp_path):
    path = RowFile(tmp_path, 1000, PLAIN, 3).path
    partial = tmp_path / f".{path.name}.partial"
    partial.write_bytes(row_file.MAGIC + bytes(10**6))
    assert path_of(table_in(tmp_path)) == path
    assert not partial.exists()


def test_a_strangers_file_is_not_written_over_while_a_table_is_made(tmp_path):
    path = RowFile(tmp_path, 1000, PLAIN, 3).path
    partial = tmp_path / f".{path.name}.partial"
    partial.write_bytes(b"a letter to a friend, of some length")
    with pytest.raises(ConfigError, match=r"partial beside it is no file of this program; move it"):
        table_in(tmp_path)
    assert partial.read_bytes() == b"a letter to a friend, of some length"


def test_whoever_wants_the_same_waits_for_it(tmp_path):
    path = RowFile(tmp_path, 1000, PLAIN, 3).path
    partial = tmp_path / f".{path.name}.partial"
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = []
        waiting = threading.Thread(target=lambda: found.append(table_in(tmp_path)))
        waiting.start()
        time.sleep(0.05)
        assert not found
    waiting.join()
    assert path_of(found[0]) == path


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(row_file, "free_bytes", lambda _: 20_000)
    told = (
        r"0\.00 GB are needed on its disk, 0\.00 GB are free: 0\.34 of model\.table_scale would fit, or another folder"
    )
    with pytest.raises(ConfigError, match=rf"^table\.path={tmp_path}: {told}"):
        table_in(tmp_path)
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\); table\.path=FOLDER takes another"):
        table_in(tmp_path / "file" / "folder")


def test_a_table_in_memory_is_called_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(row_file, "file_system", lambda _: ("tmpfs", "tmpfs"))
    table_in(tmp_path)
    assert "lies in memory, and on no disk" in caplog.text


def test_scales_stay_in_memory(tmp_path, monkeypatch):
    table = table_in(tmp_path, row_format=SPLIT, resident_scales=True)
    assert table.on_disk == [0]
    assert table.disk_row_bytes == 40
    path = path_of(table)
    replaced(path, table.extents[1].offset, bytes(2000))
    assert torch.equal(torch.cat(table.parts, dim=1), table.contents(torch.arange(1000)))
    with pytest.raises(ConfigError, match=r"^table\.resident_scales=True: .*dtype\.layout=split"):
        table_in(tmp_path, resident_scales=True)
    path.unlink()
    monkeypatch.setattr("engram_exp.steps.tables.on_disk.free_host_bytes", lambda: 100)
    with pytest.raises(DoesNotFitError, match=r"table\.resident_scales=false"):
        table_in(tmp_path, row_format=SPLIT, resident_scales=True)


def test_a_file_is_cold_though_it_is_mapped_and_warm_where_memory_allows_it(tmp_path, monkeypatch):
    table = table_in(tmp_path, rows=10**5)
    if disk.file_system(tmp_path)[0] in disk.IN_MEMORY or table.resident_share() is None:
        pytest.skip("files here lie in memory")
    assert float(table.parts[0].float().sum()) != 0
    table.make_cold()
    assert table.resident_share() == 0
    table.make_warm()
    mapping = Path("/proc/self/smaps").read_text().partition(table.files[0].path)[2].partition("VmFlags")[0]
    told = dict(line.split(":") for line in mapping.splitlines() if ":" in line)
    assert told["Rss"].strip() == told["Size"].strip(), "all of it is mapped"
    assert table.resident_share() == 1
    monkeypatch.setattr("engram_exp.steps.tables.on_disk.free_host_bytes", lambda: 100)
    with pytest.raises(DoesNotFitError, match="cache_state=as_is"):
        table.make_warm()
