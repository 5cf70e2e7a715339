"""A table in the user's own checkpoint is read as it is, by every way, and refused if it is something else."""

import json

import pytest
import torch
from common import TINY
from places import CPU
from safetensors.torch import save_file
from test_from_file import WAYS, lookup_by, require_right

from engram_exp.errors import ConfigError
from engram_exp.layer.row_format import RowFormat
from engram_exp.run.fingerprint import fingerprint
from engram_exp.run.plan import Plan
from engram_exp.steps.tables.checkpoint import CheckpointTable, tensors_of

PLAIN = RowFormat(24, torch.bfloat16)
SPLIT = RowFormat(40, torch.bfloat16, 32, split=True)
VALUES, SCALES = torch.randint(0, 255, (2, 300, 40), dtype=torch.uint8)
SCALES = SCALES[:, :2].contiguous()


def table_in(folder, row_format=SPLIT, values="t.{layer}.weight", scales="t.{layer}.scale", rows=300, resident=False):
    return CheckpointTable(rows, row_format, CPU, 3, folder, values, scales, resident)


@pytest.fixture
def shards(tmp_path):
    """Values and scales in two files, behind tensors of odd sizes, so that they begin at odd bytes."""
    odd = torch.arange(7, dtype=torch.uint8)
    values = VALUES.view(torch.float8_e4m3fn)
    save_file({"a": odd, "t.3.weight": values, "z": torch.ones(5)}, tmp_path / "model-1-of-2.safetensors")
    save_file({"b": odd[:3], "t.3.scale": SCALES}, tmp_path / "model-2-of-2.safetensors")
    return tmp_path


def test_tensors_are_found_where_the_header_says(shards):
    for path in shards.iterdir():
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        told = json.loads(content[8 : 8 + length])
        for name, found in tensors_of(path).items():
            assert found.offset == 8 + length + told[name]["data_offsets"][0]
            assert (found.dtype, list(found.shape)) == (told[name]["dtype"], told[name]["shape"])
    assert set(tensors_of(shards)) == {"a", "b", "z", "t.3.weight", "t.3.scale"}


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_reads_the_shards_of_a_checkpoint(shards, way, resident):
    table = table_in(shards, resident=resident)
    row_ids = torch.cat([torch.arange(300), torch.tensor([299, 0, 5, 5])]).view(1, 152, 2)
    stored = torch.cat([VALUES, SCALES], dim=1)
    assert torch.equal(table.contents(row_ids), stored[row_ids])
    lookup = lookup_by(way, table, 152, 2)
    require_right(lookup, table, row_ids)
    table.make_cold()
    require_right(lookup, table, row_ids.flip(1))
    assert len(table.files) == 2


@pytest.mark.parametrize("way", WAYS)
def test_rows_at_the_end_of_a_file_that_is_no_multiple_of_blocks(tmp_path, way):
    rows = torch.randn(101, 24).to(torch.bfloat16)
    save_file({"a": torch.zeros(3, dtype=torch.uint8), "rows": rows}, tmp_path / "one.safetensors")
    table = table_in(tmp_path / "one.safetensors", PLAIN, "rows", None, 101)
    assert torch.equal(table.contents(torch.tensor([100, 0])), rows[[100, 0]])
    lookup = lookup_by(way, table, 101, 1, block_bytes=512)
    require_right(lookup, table, torch.arange(101).view(1, 101, 1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"values": "x"}, r"table\.values=x: is not there, and F8_E4M3 .* \[300, 40\] is wanted; it has t.3.weight "
                          r"F8_E4M3 \[300, 40\], t.3.scale U8 \[300, 2\], a U8 \[7\], z F32 \[5\], b U8 \[3\]$"),
        ({"values": "z"}, r"table\.values=z: is F32 \[5\], and F8_E4M3 .* \[300, 40\] follows from model and dtype"),
        ({"rows": 299}, r"table\.values=t.3.weight: is F8_E4M3 \[300, 40\], and .* \[299, 40\] follows"),
        ({"scales": None}, r"table\.scales=null: rows are split: name the tensor of their scales"),
        ({"row_format": PLAIN}, r"table\.scales=t.{layer}.scale: rows are in one piece: null"),
    ],
)  # fmt: skip
def test_a_checkpoint_without_the_tensors_names_what_it_has(shards, changes, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        table_in(shards, **changes)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^table\.checkpoint=.*: holds no \*\.safetensors"):
        table_in(tmp_path)
    for content in (b"", b"\x80\x04K\x01.", bytes(100)):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^table\.checkpoint=.*a\.safetensors: is no safetensors file that can"):
            table_in(tmp_path)
    with pytest.raises(ConfigError, match=r"^table\.checkpoint=.*none: is no safetensors file"):
        table_in(tmp_path / "none")


@pytest.fixture
def asked(tmp_path, configure):
    """A run of the tiny model whose table is a tensor of a checkpoint, and that tensor."""
    geometry = Plan(configure(*TINY)).geometry
    rows = torch.randn(geometry.rows, 8).to(torch.bfloat16)
    save_file({"layers.1.table": rows, "other": torch.ones(3)}, tmp_path / "mine.safetensors")
    return (
        "strategy=disk", "table=checkpoint", f"table.checkpoint={tmp_path / 'mine.safetensors'}", "schedule=serial",
        r"table.values=layers.\{layer\}.table", "lookup=pread",
    ), rows  # fmt: skip


def test_a_run_is_verified_against_the_checkpoint(run_inline, asked, tmp_path):
    overrides, rows = asked
    found = {row["case"]: row for row in run_inline(*overrides, "cases=[lookup,full,projection]")}
    assert {row["status"] for row in found.values()} <= {"ok", "suspect"}, found
    save_file({"layers.1.table": rows[:-1], "other": torch.ones(3)}, tmp_path / "mine.safetensors")
    refused = run_inline(*overrides, "cases=[lookup]")
    assert refused[0]["status"] == "refused"
    assert "table.values=layers.1.table: is BF16" in refused[0]["error"]


def test_another_checkpoint_is_another_run(configure, asked, tmp_path):
    overrides, rows = asked
    config = configure(*TINY, *overrides)
    before = fingerprint(config, {}, 0)
    assert fingerprint(config, {}, 0) == before
    save_file({"layers.1.table": rows + 1, "other": torch.ones(3)}, tmp_path / "mine.safetensors")
    assert fingerprint(config, {}, 0) != before
