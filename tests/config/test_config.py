"""Every choice in conf/ composes and gives components."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from common import ROOT, TINY
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engram_exp.campaign.preflight import Preflight
from engram_exp.config.checks import check
from engram_exp.config.derived import threads_of
from engram_exp.config.schema import register_schema
from engram_exp.errors import ConfigError
from engram_exp.machine.data_sheets import DATA_SHEETS
from engram_exp.run.parts import Builder
from engram_exp.strategy.plan import needed_stages
from engram_exp.vocabulary import UPLOADS

CONF = ROOT / "conf"
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONF.iterdir() if folder.is_dir()
}
STEPS = [["hashing", "lookup", "projection"], ["hashing", "lookup", "widening", "projection"]]
FILES = [(group, option) for group, options in GROUPS.items() if group != "hydra" for option in options]
OPTIONS = FILES + [("hardware", option) for option in DATA_SHEETS]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(configure, tmp_path, group, option):
    if group == "hardware" and option not in ("auto", "cpu") and not torch.cuda.is_available():
        assert configure(f"hardware={option}").hardware.device == "cuda"
        pytest.skip("needs a CUDA device")
    overrides = [f"{group}={option}", "batch_size=2", "seq_len=4", "model.table_scale=0.001", "tokens.history=false"]
    if group != "tokens":
        overrides.append("tokens=random")
    if option in ("triton", "triton_link", "device"):  # steps on the device, a table there
        overrides.append("strategy=device")
    if option == "ids":
        np.save(tmp_path / "ids.npy", np.arange(8).reshape(2, 4))
        overrides.append(f"tokens.path={tmp_path / 'ids.npy'}")
    config = configure(*overrides)
    check(config)
    builder = Builder(config)
    builder.check_components()
    builder.check_dtype()
    names = needed_stages(["full"], builder.active)
    assert [builder.stage(name).name for name in names if name not in UPLOADS] == STEPS[option == "fp8"]
    batch = builder.batches[0]
    assert batch.ids.shape == (2, 4)
    assert batch.history.shape == (2, builder.geometry.max_order - 1)


def test_every_option_is_explained():
    for group, option in FILES:
        text = (CONF / group / f"{option}.yaml").read_text().replace("# @package _global_\n", "")
        assert text.startswith("# "), f"conf/{group}/{option}.yaml does not begin with what it is"


def test_shapes_are_what_they_say(configure):
    decode, prefill, original = (configure(f"shape={shape}") for shape in ("decode", "prefill", "original"))
    assert (decode.batch_size, decode.seq_len, decode.tokens.history) == (64, 1, True)
    assert (prefill.batch_size, prefill.seq_len) == (1, 8192)
    assert (original.batch_size, original.seq_len) == (64, 4096)


def test_the_defaults_are_those_of_the_original_with_better_components(configure):
    config = configure()
    assert (config.batch_size, config.seq_len, config.dtype.name, config.model.hc_mult) == (64, 4096, "bfloat16", 4)
    assert config.hashing._target_.endswith("NumbaHasher")


def test_the_original_is_assembled_and_each_part_can_be_replaced(configure):
    config = configure("experiment=original", "components=original")
    targets = [config[group]._target_.rpartition(".")[2] for group in ("tokens", "hashing", "lookup", "projection")]
    assert targets == ["RandomTokens", "NumpyHasher", "EmbeddingLookup", "LinearProjection"]
    assert config.upload._target_.endswith("PageableUpload")
    config = configure("components=original", "hashing=numba")
    assert config.hashing._target_.endswith("NumbaHasher")
    assert config.lookup._target_.endswith("EmbeddingLookup")


@pytest.mark.parametrize(
    "override",
    [
        "batch_size=many",
        "iterations=1.5",
        "model.heads=x",
        "hardware.threads=all",
        "model.bias=perhaps",
        "dtype.name=[1]",
    ],
)
def test_wrong_types_are_refused_by_key(configure, override):
    with pytest.raises(Exception, match=override.partition("=")[0]) as refusal:
        configure(override)
    chain = [refusal.value, refusal.value.__cause__]
    assert any(isinstance(error, OmegaConfBaseException) for error in chain)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["batch_size=0"], "batch_size"),
        (["seq_len=-1"], "seq_len"),
        (["seed=4294967296"], "seed"),
        (["hardware.threads=100000"], "hardware.threads"),
        (["iterations=0"], "iterations"),
        (["batches=0"], "batches"),
        (["seed=-1"], "seed"),
        (["budget_s=0"], "budget_s"),
        (["timeout_s=-5"], "timeout_s"),
        (["worker=thread"], "worker"),
        (["campaign=../elsewhere"], "campaign"),
        (["campaign=/elsewhere"], "campaign"),
        (["campaign="], "campaign"),
        (["campaign=."], "campaign"),
        (["layer=2"], "layer"),
        (["cases=[]"], "cases"),
        (["cases=[hashing,sleep]"], "cases"),
        (["model.table_scale=2"], "model.table_scale"),
        (["dtype.tolerance=0"], "dtype.tolerance"),
        (["hardware.threads=0"], "hardware.threads"),
        (["hardware.affinity=[100000]"], "hardware.affinity"),
        (["hardware.affinity=[]"], "hardware.affinity"),
        (["worker=inline", "hardware.threads=2"], "worker"),
        (["strategy.hashing=device"], "strategy.lookup"),
        (["strategy.lookup=moon"], "strategy.lookup"),
        (["strategy.table=device"], "strategy.lookup"),
        (["schedule.chunk_tokens=0"], "schedule.chunk_tokens"),
        (["schedule.chunk_tokens=most"], "schedule.chunk_tokens"),
        (["schedule.ring_depth=0"], "schedule.ring_depth"),
        (["strategy=uva", "schedule=pipelined"], "schedule"),
        (["capture=graph"], "capture"),
        (["capture=film", "strategy=uva"], "capture"),
        (["limits=maybe"], "limits"),
        (["dtype=fp8", "dtype.layout=mixed"], "dtype.layout"),
        (["dtype.layout=split"], "dtype.layout"),
        (["schedule.chunk_tokens=true"], "schedule.chunk_tokens"),
        (["schedule=serial", "schedule.ring_depth=7"], "schedule.ring_depth"),
        (["batches=some"], "batches"),
        (["strategy=uva", "lookup.order=random"], "lookup.order"),
        (["dtype=fp8", "dtype.values_per_scale=0"], "dtype.values_per_scale"),
        (["dtype.name=int8"], "dtype"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(configure, overrides, key):
    with pytest.raises(ConfigError) as refusal:
        check(configure(*overrides))
    assert str(refusal.value).startswith(f"{key}=")


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
        Builder(configure(*overrides)).check_components()
    assert str(refusal.value).startswith(says)


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
        _ = Builder(configure(*overrides)).dtype
    assert str(refusal.value).startswith(says)


@pytest.mark.parametrize("overrides", [["table=device"], ["strategy=device", "table=huge"]])
def test_a_table_lives_where_the_strategy_keeps_it(configure, overrides):
    with pytest.raises(ConfigError, match=r"^table=(Device|Host)Table: lives on the (device|host), but the strategy"):
        Builder(configure(*overrides)).check_components()


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
from engram_exp.run.parts import Builder
from engram_exp.errors import ConfigError
for path in sys.argv[1:]:
    try:
        Builder(OmegaConf.load(path)).check_components()
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

    builder = Builder(configure("hardware=cpu", "dtype=float16"))
    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    with pytest.raises(ConfigError, match=r"^dtype=float16: cpu cannot multiply matrices in it; try float32"):
        builder.check_dtype()


@pytest.mark.parametrize("device", ["cuda", "warp"])
def test_a_device_that_is_not_there_is_refused(configure, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=rf"^hardware\.device={device}: .*auto and cpu would work"):
        _ = Builder(configure("hardware=cpu", f"hardware.device={device}")).device


def test_threads_follow_the_affinity(configure):
    assert threads_of(configure("hardware.threads=3", "hardware.affinity=[0]")) == 3
    assert threads_of(configure("hardware.affinity=[0]")) == 1


@pytest.mark.parametrize(
    ("overrides", "quota", "says"),
    [
        (
            ["hardware.threads=5"],
            None,
            "hardware.threads=5: more threads than CPUs that a run may use here; 4 would work",
        ),
        (["hardware.threads=3"], 2, "hardware.threads=3: more threads than CPUs that a run may use here; 2 would work"),
        (
            ["hardware.threads=2", "hardware.affinity=[3]"],
            None,
            "hardware.threads=2: more threads than CPUs that a run",
        ),
        (["hardware.affinity=[3,4]"], None, "hardware.affinity=[3, 4]: must be some of the CPUs [0, 1, 2, 3]"),
    ],
)
def test_more_threads_than_cpus_are_refused(configure, monkeypatch, overrides, quota, says):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr("engram_exp.machine.cgroup.cpus", lambda: quota)
    check(configure("hardware.threads=2"))
    check(configure(*overrides), here=False)
    with pytest.raises(ConfigError) as refusal:
        check(configure(*overrides))
    assert str(refusal.value).startswith(says)


def test_threads_are_refused_where_the_run_finds_too_few_cpus(run_inline):
    rows = run_inline("hardware.threads=4000", "cases=[hashing]")
    assert [row["status"] for row in rows] == ["refused"]
    assert rows[0]["error"].startswith("hardware.threads=4000: more threads than CPUs")


@pytest.mark.parametrize(("launcher", "is_refused"), [("basic", True), ("local_queue", False)])
def test_a_sweep_that_is_sent_elsewhere_is_not_held_to_the_cpus_of_this_machine(tmp_path, launcher, is_refused):
    register_schema()
    overrides = [*TINY, f"output_dir={tmp_path}", f"hydra/launcher={launcher}", "hardware.threads=4000"]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides, return_hydra_config=True)
        OmegaConf.update(config, "hydra.job.config_name", "config", force_add=True)
        OmegaConf.update(config, "hydra.overrides", {"task": overrides, "hydra": []}, force_add=True)
        with pytest.raises(SystemExit) if is_refused else nullcontext():
            Preflight().on_multirun_start(config)


@pytest.mark.parametrize("text", ["order: sorted\n", "_target_: null\n", "_target_: ???\n", "_target_: [a, b]\n", ""])
def test_a_component_without_a_class_is_refused(configure, tmp_path, text):
    (tmp_path / "lookup").mkdir()
    (tmp_path / "lookup/mine.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"^lookup\._target_=null: must be the component's class, as in conf/lookup/: "
    ):
        check(configure(f"hydra.searchpath=[file://{tmp_path}]", "lookup=mine"))


def test_what_has_no_value_is_refused(configure, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/mine.yaml").write_text("# @package _global_\nstrategy: {hashing: host}\n")
    with pytest.raises(ConfigError, match=r"^strategy\.lookup=\?\?\?: has no value; set it, or choose an option"):
        check(configure(f"hydra.searchpath=[file://{tmp_path}]", "strategy=mine"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: b: c\n", r"mine\.yaml is no YAML that can be read; mend it: mapping values are .*, line 1, column 5$"),
        (b"a: 1\na: 2\n", r"mine\.yaml is no YAML that can be read; mend it: .* found duplicate key a .*, line 2, col"),
        (b"a: \xff\n", r"mine\.yaml is no YAML that can be read; mend it: 'utf-8' codec can't decode byte 0xff"),
        (b"5\n", r"mine\.yaml is no YAML that can be read; mend it: "),
        (b"- 1\n- 2\n", r"mine\.yaml must hold keys and values, as the files in conf/ do$"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(configure, tmp_path, content, says):
    (tmp_path / "lookup").mkdir()
    (tmp_path / "lookup/mine.yaml").write_bytes(content)
    with pytest.raises(CompactHydraException, match=says) as refusal:  # Hydra shows its message and no traceback
        configure(f"hydra.searchpath=[file://{tmp_path}]", "lookup=mine")
    assert str(refusal.value).startswith(f"{tmp_path}/lookup/mine.yaml ")
    assert "\n" not in str(refusal.value)


def test_tiny_is_tiny(configure):
    assert Builder(configure(*TINY)).geometry.rows < 1000


def test_configurations_stand_only_where_hydra_finds_them():
    assert not list(Path(ROOT / "engram_exp").rglob("*.yaml"))


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
    builder = Builder(config)
    builder.check_components()
    stage = builder.stage("lookup")
    row_ids = torch.zeros(2, 12, 4, dtype=torch.int32)
    assert torch.equal(stage.run((row_ids,))[0], builder.table.contents(row_ids).reshape(24, 32))
    assert config.projection._target_.endswith("LinearProjection")
    assert configure(*overrides, "projection=fused").projection._target_.endswith("FusedProjection")
    assert configure(*overrides, "components=original").lookup._target_.endswith("EmbeddingLookup")
    with pytest.raises(ConfigError, match=r"^lookup\.times=twice"):
        Builder(configure(*overrides, "lookup.times=twice")).check_components()
