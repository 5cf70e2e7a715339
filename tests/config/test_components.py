"""Every component that conf/ names is built, and what cannot be built is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from common import ROOT, TINY
from omegaconf import OmegaConf
from places import parts_of
from safetensors.torch import save_file

from engram_exp.config.checks import check
from engram_exp.config.options import CPU, GIVEN
from engram_exp.errors import ConfigError
from engram_exp.machine.data_sheets import DATA_SHEETS
from engram_exp.machine.placement import Placement
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_components, check_dtype, check_fusion
from engram_exp.vocabulary import UPLOADS

FILES = [(file.parent.name, file.stem) for file in sorted((ROOT / "conf").glob("*/*.yaml"))]
APART = ("hydra",)  # in no configuration of ours
OPTIONS = [choice for choice in FILES if choice[0] not in APART] + [("hardware", option) for option in DATA_SHEETS]
ENGINES = ("vllm_0_33", "sglang_0_5_23", "sglang_staged")
OF_A_FILE = ("disk", "file", "checkpoint", "mmap", "pread", "direct", "io_uring")
STEPS = [["hashing", "lookup", "projection"], ["hashing", "lookup", "widening", "projection"]]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
@pytest.mark.slow
def test_every_option_composes_and_builds(configure, tmp_path, group, option):
    if group == "hardware" and option not in ("auto", "cpu") and not torch.cuda.is_available():
        assert configure(f"hardware={option}").hardware.device == "cuda"
        pytest.skip("needs a CUDA device")
    overrides = [f"{group}={option}", "batch_size=2", "seq_len=4", "model.table_scale=0.001", "tokens.history=false"]
    if option in ("row_cache", "row_cache_uva"):
        overrides += ["tokens.max_mb=1", "tokens.concurrency=1", "batches=4"]
        overrides += ["lookup.gb=0.001"] if option == "row_cache" else []
    elif group != "tokens":
        overrides.append("tokens=random")
    if (group, option) == ("fusion", "gated"):
        overrides.append("model=deepseek_v41_flash")
    if option in ("triton", "triton_link", "device", "graph", "shard") or (group == "lookup" and option in ENGINES):
        overrides.append("strategy=device")  # steps on the device, a table there
    if (group, option) in (("lookup", "both"), ("lookup", "distinct_copy")):
        overrides.append("strategy=both")
    if option == "column_parallel":
        overrides += ["ranks=2", "hardware=cpu"]
    if option == "distinct_link":
        overrides.append("strategy=uva")
    if option == "split":
        overrides += ["strategy=split", "lookup.gb=0.00001"]
    if option in OF_A_FILE:
        overrides += ["strategy=disk", f"table.path={tmp_path}"] if option != "checkpoint" else ["strategy=disk"]
    if option == "checkpoint":
        rows = parts_of(configure(*overrides[1:])).plan.geometry.rows
        save_file({"rows": torch.zeros(rows, 64, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
        overrides += [f"table.checkpoint={tmp_path}", "table.values=rows"]
    if option in ("cached", "cached_copy"):
        overrides += [f"strategy={option}", "lookup.gb=0.001"]
    if group == "decoder" and option != "none":
        overrides += ["decoder.layers=16", "decoder.vocab_size=100"]  # which sizes are the model's, tests/decoder has
    if option in ("ids", "trace"):
        np.save(tmp_path / "ids.npy", np.arange(8).reshape((2, 4) if option == "ids" else (1, 2, 4)))
        overrides.append(f"tokens.path={tmp_path / 'ids.npy'}")
    config = configure(*overrides)
    check(config)
    parts = parts_of(config)
    check_components(parts.plan)
    check_fusion(parts.plan)
    check_dtype(parts.plan)
    names = [parts.stage(stage).name for stage in parts.plan.stages]
    # The lookups of the other engines widen by themselves.
    widens = (
        option.startswith("fp8")
        or option in ("engines", "engines_step", "sglang_staged", "row_cache", "step", "step_prompts")
        or (group, option) == ("experiment", "disk")
    )
    fuses = (group == "fusion" and option != "none") or option in ("paper", "paper_prompts")
    fusion = ["fusion"] if fuses else []
    assert [name for name in names if name not in UPLOADS] == STEPS[widens] + fusion
    batch = parts.batches[0]
    assert batch.ids.shape == (2, 4)
    assert batch.history.shape == (2, parts.plan.geometry.max_order - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+hashing.depth=3"], "hashing.depth=3: NumbaHasher has no such option"),
        (
            ["tokens=random", "tokens.share=most"],
            "tokens.share=most: must be float, not of type str",
        ),
        (
            ["tokens=random", "+tokens.vocab_size=100"],
            "tokens.vocab_size=100: follows from the rest of the configuration; leave",
        ),
        (["tokens.history=perhaps"], "tokens.history=perhaps: must be bool, not of type str"),
        (["tokens.max_mb=[1]"], "tokens.max_mb=[1]: must be float, not of type list"),
        (["tokens=ids", "tokens.path=5"], "tokens.path=5: must be str or null, not of type int"),
    ],
)
def test_options_of_components_are_held_to_their_constructors(configure, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        check_components(Plan(configure(*overrides)))
    assert str(refusal.value).startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dtype.name=int8"], "dtype=int8: must be float32, float16, bfloat16"),
        (["dtype.name=float64"], "dtype=float64: must be float32, float16, bfloat16"),
        (["dtype.name=bfloat61"], "dtype=bfloat61: must be float32, float16, bfloat16"),
    ],
)
def test_an_unknown_dtype_is_refused(configure, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        _ = Plan(configure(*overrides)).dtype
    assert str(refusal.value).startswith(says)


@pytest.mark.parametrize("overrides", [["table=device"], ["strategy=device", "table=huge"]])
def test_a_table_lives_where_the_strategy_keeps_it(configure, overrides):
    with pytest.raises(ConfigError, match=r"^table: lives on the (device|host), but the strategy"):
        check_components(Plan(configure(*overrides)))


@pytest.mark.slow
def test_without_triton_its_kernels_are_refused_and_others_run(configure, tmp_path):
    """In a process of its own, in which importing Triton fails as it does where it is not installed."""
    code = """
import sys
from importlib.abc import MetaPathFinder

class NoTriton(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name=name)

sys.meta_path.insert(0, NoTriton())
from omegaconf import OmegaConf
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_components
from engram_exp.errors import ConfigError
for path in sys.argv[1:]:
    try:
        check_components(Plan(OmegaConf.load(path)))
        print("runs")
    except ConfigError as error:
        print(error)
"""
    paths = []
    for strategy in ("uva", "kv_on_gpu"):
        paths.append(tmp_path / f"{strategy}.yaml")
        OmegaConf.save(configure(f"strategy={strategy}"), paths[-1])
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True)
    refused, runs = done.stdout.splitlines() or [done.stderr, ""]
    assert refused.startswith("hashing=triton: needs Triton, which is not installed; strategy=kv_on_gpu"), refused
    assert runs == "runs"


def test_a_dtype_that_the_device_lacks_is_refused(configure, monkeypatch):
    def multiply(self, other):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    plan = Plan(configure("hardware=cpu", "dtype=float16"))
    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    with pytest.raises(ConfigError, match=r"^dtype=float16: cpu cannot multiply matrices in it; try float32"):
        check_dtype(plan)


@pytest.mark.parametrize("device", ["cuda", "warp"])
def test_a_device_that_is_not_there_is_refused(configure, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=rf"^hardware\.device={device}: .*auto and cpu would work"):
        _ = Plan(configure("hardware=cpu", f"hardware.device={device}")).device


def test_tiny_is_tiny(configure):
    assert Plan(configure(*TINY)).geometry.rows < 1000


NEW_LOOKUP = """
from engram_exp.steps.lookup.embedding import EmbeddingLookup


class RepeatedLookup(EmbeddingLookup):
    def __init__(self, table, max_tokens, columns, placement, times: int):
        super().__init__(table, max_tokens, columns, placement)
        self.times = times

    def __call__(self, row_ids):
        return [super(RepeatedLookup, self).__call__(row_ids) for _ in range(self.times)][-1]
"""


NEW_STRATEGY = """# @package _global_
defaults:
  - override /lookup: repeated
  - override /projection: linear
strategy: {hashing: host, lookup: host, projection: device}
"""


@pytest.mark.slow
def test_a_new_component_and_a_new_strategy_cost_one_file_each(configure, tmp_path, monkeypatch):
    (tmp_path / "repeated_lookup.py").write_text(NEW_LOOKUP)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {
        "lookup/repeated": "_target_: repeated_lookup.RepeatedLookup\ntimes: 2\n",
        "strategy/mine": NEW_STRATEGY,
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    overrides = [*TINY, f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "strategy=mine"]
    config = configure(*overrides)
    assert config.lookup.times == 2
    parts = parts_of(config)
    check_components(parts.plan)
    stage = parts.stage(next(stage for stage in parts.plan.stages if stage.name == "lookup"))
    row_ids = torch.zeros(2, 12, 4, dtype=torch.int32)
    assert torch.equal(stage.run((row_ids,))[0], parts.table.contents(row_ids).reshape(24, 32))
    assert config.projection._target_.endswith("LinearProjection")
    assert configure(*overrides, "projection=fused").projection._target_.endswith("FusedProjection")
    assert configure(*overrides, "components=original").lookup._target_.endswith("EmbeddingLookup")
    with pytest.raises(ConfigError, match=r"^lookup\.times=twice"):
        check_components(Plan(configure(*overrides, "lookup.times=twice")))


def test_threads_are_refused_where_the_run_finds_too_few_cpus(run_inline):
    rows = run_inline("hardware.threads=4000", "cases=[hashing]")
    assert [row["status"] for row in rows] == ["refused"]
    assert rows[0]["error"].startswith("hardware.threads=4000: more threads than CPUs")


def test_what_a_run_gives_is_what_options_may_not_be_called(configure):
    parts = parts_of(configure(*TINY))
    assert sorted(parts._given(1, Placement(CPU))) == sorted(GIVEN)
