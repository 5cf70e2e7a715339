"""What may be typed, what it means, and what is refused before anything starts. Nothing here needs PyTorch."""

from contextlib import nullcontext
from pathlib import Path

import pytest
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


def test_every_option_is_explained():
    files = [file for file in (ROOT / "conf").glob("*/*.yaml") if file.parent.name != "hydra"]
    assert files
    for file in files:
        text = file.read_text().replace("# @package _global_\n", "")
        assert text.startswith("# "), f"{file} does not begin with what it is"


@pytest.mark.slow
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


ENGINES = {"vllm_0_33": "uva", "sglang_0_5_23": "uva", "sglang_staged": "kv_on_gpu"}


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "own"), ENGINES.items())
def test_an_engine_brings_its_strategy_and_has_no_path_with_another(configure, engine, own):
    chosen = configure(f"components={engine}")
    assert chosen.strategy == configure(f"strategy={own}").strategy
    assert (chosen.dtype.values_per_scale, chosen.dtype.layout, chosen.schedule.chunk_tokens) == (32, "split", None)
    check(chosen)
    for strategy in {"kv_on_cpu", "kv_on_gpu", "uva", "device"} - {own}:
        with pytest.raises(ConfigError, match=rf"^components={engine}: has no path with .* takes strategy={own}$"):
            check(configure(f"components={engine}", f"strategy={strategy}"))
    with pytest.raises(ConfigError, match=r"^dtype\.layout=split: .*use it with dtype=fp8"):
        check(configure(f"components={engine}", "dtype=bfloat16"))


def test_engines_and_ours_stand_in_one_table(configure):
    """A sweep over bundles takes the strategy and the layout of each; the same rows are looked up."""
    for bundle, strategy in {**ENGINES, "tuned": "kv_on_gpu", "tuned_uva": "uva"}.items():
        config = configure("experiment=engines", f"components={bundle}")
        check(config)
        assert config.strategy == configure(f"strategy={strategy}").strategy
        layout = "split" if bundle in ENGINES else "packed"
        assert (config.dtype.layout, config.dtype.values_per_scale, config.model.row_values) == (layout, 32, 256)
        assert configure("experiment=engines", f"components={bundle}", "dtype.layout=split").dtype.layout == "split"


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "batch_size=many",
        "iterations=1.5",
        "model.heads=x",
        "model.eos_id=x",
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


@pytest.mark.slow
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
        (["model.hash_seed=-1"], "model.hash_seed"),
        (["model.pad_id=-1"], "model.pad_id"),
        (["model.hash._target_=null"], "model.hash._target_"),
        (["model.hash=qwen"], "model.hash._target_"),
        (["model.layers=[]"], "model.layers"),
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
        (["strategy=uva", "strategy.hashing=host", "schedule=pipelined"], "schedule"),
        (["capture=graph"], "capture"),
        (["capture=film", "strategy=uva"], "capture"),
        (["limits=maybe"], "limits"),
        (["dtype=fp8", "dtype.layout=mixed"], "dtype.layout"),
        (["dtype.layout=split"], "dtype.layout"),
        (["schedule.chunk_tokens=true"], "schedule.chunk_tokens"),
        (["schedule=serial", "schedule.ring_depth=7"], "schedule.ring_depth"),
        (["batches=some"], "batches"),
        (["pause_ms=-1"], "pause_ms"),
        (["pause_ms=nan"], "pause_ms"),
        (["graph_calls=-1"], "graph_calls"),
        (["graph_calls=8", "pause_ms=2"], "graph_calls"),
        (["graph_calls=8", "ranks=2"], "graph_calls"),
        (["host_load=-1"], "host_load"),
        (["host_load=100000"], "host_load"),
        (["link_load_gb_per_s=-1"], "link_load_gb_per_s"),
        (["link_load_gb_per_s=inf"], "link_load_gb_per_s"),
        (["link_load_block_kib=0"], "link_load_block_kib"),
        (["lookup.threads=0"], "lookup.threads"),
        (["lookup.threads=1.5"], "lookup.threads"),
        (["hashing.threads=true"], "hashing.threads"),
        (["hardware.threads=1", "hashing.threads=2"], "hashing.threads"),
        (["strategy=uva", "lookup.order=random"], "lookup.order"),
        (["dtype=fp8", "dtype.values_per_scale=0"], "dtype.values_per_scale"),
        (["dtype=fp8_one_scale", "dtype.one_scale=0"], "dtype.one_scale"),
        (["dtype=fp8_one_scale", "dtype.one_scale=inf"], "dtype.one_scale"),
        (["dtype=fp8", "dtype.one_scale=0.5"], "dtype.one_scale"),
        (["dtype=fp8_one_scale", "dtype.layout=split"], "dtype.layout"),
        (["dtype.name=int8"], "dtype"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(configure, overrides, key):
    with pytest.raises(ConfigError) as refusal:
        check(configure(*overrides))
    assert str(refusal.value).startswith(f"{key}=")


def test_threads_follow_the_affinity(configure):
    assert threads_of(configure("hardware.threads=3", "hardware.affinity=[0]")) == 3
    assert threads_of(configure("hardware.affinity=[0]")) == 1


@pytest.mark.slow
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
        (["host_load=3"], 2, "host_load=3: more busy processes than CPUs that a run may use here; 2 would work"),
        (["host_load=2", "hardware.affinity=[3]"], None, "host_load=2: more busy processes than CPUs that a run"),
        (["hardware.affinity=[3,4]"], None, "hardware.affinity=[3, 4]: must be some of the CPUs [0, 1, 2, 3]"),
    ],
)
def test_more_threads_or_busy_processes_than_cpus_are_refused(configure, monkeypatch, overrides, quota, says):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr("engram_exp.machine.cgroup.cpus", lambda: quota)
    check(configure("hardware.threads=2", "host_load=2"))
    check(configure(*overrides), here=False)
    with pytest.raises(ConfigError) as refusal:
        check(configure(*overrides))
    assert str(refusal.value).startswith(says)


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


def test_configurations_stand_only_where_hydra_finds_them():
    assert not list(Path(ROOT / "engram_exp").rglob("*.yaml"))
