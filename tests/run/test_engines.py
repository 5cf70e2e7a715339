"""Each engine's way makes what ours makes."""

import pytest
import torch
from common import TINY
from places import KERNEL_DEVICE
from safetensors.torch import load_file

from engram_exp.config.checks import check
from engram_exp.errors import ConfigError
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_plan

BUNDLES = ("vllm_0_33", "sglang_0_5_23", "sglang_staged", "tuned_uva", "tuned")
SHAPE = ("seq_len=4", "model.row_values=40", "dtype=fp8", "dtype.layout=split", f"hardware={KERNEL_DEVICE.type}")


def shape_of(bundle):
    captures = KERNEL_DEVICE.type == "cuda" and bundle in ("vllm_0_33", "sglang_0_5_23", "tuned_uva")
    return (*SHAPE, f"components={bundle}", f"capture={'graph' if captures else 'none'}")


@pytest.mark.usefixtures("few_looks")
def test_all_bundles_make_the_same_embeddings_keys_and_value(run_inline, tmp_path):
    found = {}
    for bundle in BUNDLES:
        rows = run_inline(*shape_of(bundle), "save_tensors=true", "cases=[full]")
        assert [row["status"] for row in rows] == ["ok"], rows
        found[bundle] = load_file(tmp_path / "tensors.safetensors")
    ours = found["tuned"]
    for bundle, theirs in found.items():
        assert torch.equal(theirs["row_ids"], ours["row_ids"]), bundle
        assert torch.equal(theirs["embeddings"], ours["embeddings"]), bundle
        for name in ("keys", "value"):
            torch.testing.assert_close(theirs[name].float(), ours[name].float(), rtol=2e-2, atol=2e-2)
    staged = found["sglang_staged"]
    columns, tokens = ours["row_ids"].shape[-1], len(ours["keys"])
    parts = staged["stored_values"].view(tokens, columns, -1), staged["stored_scales"].view(tokens, columns, -1)
    assert torch.equal(torch.cat(parts, dim=-1).view(tokens, -1), ours["stored_rows"])


@pytest.mark.usefixtures("few_looks")
def test_the_rows_say_how_each_engine_reads(run_inline):
    columns = ("row_order", "rows_per_program", "warps", "programs")
    told = {bundle: run_inline(*shape_of(bundle), "cases=[lookup]")[0] for bundle in BUNDLES[:3]}
    processors = 1 if KERNEL_DEVICE.type == "cpu" else torch.cuda.get_device_properties(0).multi_processor_count
    assert [told["vllm_0_33"][name] for name in columns] == ["as_asked", 16, 4, processors]
    assert [told["sglang_0_5_23"][name] for name in columns] == ["sorted", 1, 4, None]
    assert [told["sglang_staged"][name] for name in columns] == ["", None, None, None]


@pytest.mark.parametrize("cases", ["[widening]", "[projection]", "[lookup,widening]"])
def test_parts_are_made_up_where_nothing_makes_them(run_inline, cases):
    rows = run_inline(*shape_of("sglang_staged"), f"cases={cases}")
    assert {row["status"] for row in rows} == {"ok"}, rows


@pytest.mark.accelerator
def test_parts_that_are_made_up_cross_the_link(run_inline):
    rows = run_inline(*shape_of("sglang_staged"), "cases=[up_embed]")
    assert {row["status"] for row in rows} == {"ok"}, rows


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lookup=staged"], "lookup: hands out other pinned memory .*: upload=fresh"),
        (["upload=fresh", "schedule=pipelined"], "schedule=pipelined: .*: upload=pinned, or schedule=serial"),
        (["lookup=staged", "upload=fresh", "schedule=pipelined"], "schedule=pipelined: .*memory: schedule=serial"),
    ],
)
def test_memory_that_is_not_kept_is_refused_where_it_must_be(configure, monkeypatch, overrides, says):
    monkeypatch.setattr(Plan, "has_link", True)  # as if there were a GPU
    plan = Plan(configure(*TINY, *overrides))
    with pytest.raises(ConfigError, match=f"^{says}"):
        check_plan(plan)
    check_plan(Plan(configure(*TINY, "lookup=staged", "upload=fresh", "schedule=serial")))
    check_plan(Plan(configure(*TINY, "strategy=kv_on_cpu", "lookup=staged", "schedule=serial")))  # no row crosses


@pytest.mark.parametrize("strategy", ["uva", "device"])
@pytest.mark.parametrize("upload", ["fresh", "pageable"])
def test_any_upload_takes_whole_batches_to_a_device_that_works_alone(configure, monkeypatch, strategy, upload):
    monkeypatch.setattr(Plan, "has_link", True)  # as if there were a GPU
    options = f"strategy={strategy}", f"upload={upload}", "schedule=pipelined", "capture=none"
    check_plan(Plan(configure(*TINY, *options)))


def test_scales_that_are_not_split_off_are_not_staged_apart(configure):
    with pytest.raises(ConfigError, match=r"^lookup\.apart=True: scales lie behind .*; use dtype\.layout=split"):
        check(configure("components=sglang_staged", "dtype.layout=packed"))
    with pytest.raises(ConfigError, match=r"^lookup\.apart=True: .* one scale; use lookup\.apart=false"):
        check(configure("dtype=fp8_one_scale", "lookup=staged"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lookup.programs=0", r"lookup\.programs=0: must be at least 1"),
        ("lookup.rows_per_program=3", r"lookup\.rows_per_program=3: must be a power of two"),
        (
            "lookup.rows_per_program=multiprocessors",
            r"lookup\.rows_per_program=multiprocessors: must be a power of two",
        ),
    ],
)
def test_a_launch_that_cannot_be_is_refused_before_anything_runs(configure, override, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        check(configure("strategy=uva", override))
    check(configure("components=sglang_staged", "dtype.layout=packed", "lookup.apart=false"))
