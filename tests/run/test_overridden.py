"""Whatever was set and no other column tells stands in `options`: two runs that differ are never one."""

from pathlib import Path

import pytest
from common import TINY, composed
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from engram_exp import load_results
from engram_exp.results import schema
from engram_exp.run.job import Job
from engram_exp.run.overridden import as_text

GROUPED = schema.of_role(
    schema.STRATEGY, schema.SUBJECT, schema.STEP, schema.ASKED, schema.WAY, schema.OPTIONS, schema.MACHINE
)
MINE = {
    "lookup": "_target_: engram_exp.steps.lookup.gather.GatherLookup\nfoo: 2\nbar: 1\n",
    "experiment": "# @package _global_\nmodel:\n  hc_mult: 1\nbatch_size: 3\n",
    "shape": "# @package _global_\nbatch_size: 3\nseq_len: 3\ntokens:\n  share: 0.5\n",
    "hardware": "defaults:\n  - auto\npin_threads: true\n",
    "strategy": "# @package _global_\ndefaults:\n  - override /lookup: mine\nstrategy:\n  table: host\n"
    "  hashing: host\n  lookup: host\n  projection: device\nlookup:\n  foo: 3\n",
    "model": "defaults:\n  - demo\nrow_values: 32\n",
}


def job_of(*overrides):
    """As the command line would make it."""
    return Job.create(*composed(*overrides), Path("nowhere"), overrides=overrides)


def options_of(*overrides):
    return job_of(*overrides).columns()["options"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ((), ""),
        (("model.hc_mult=1",), "model.hc_mult=1"),
        (("model.hc_mult=4",), ""),  # as its file has it
        (
            ("tokens=random", "tokens.share=0.1", "model.hidden_size=16", "model.hc_mult=1"),
            "model.hc_mult=1 model.hidden_size=16 tokens.share=0.1",
        ),
        (("tokens=ids", "tokens.path=my/ids.npy"), "tokens.path=my/ids.npy"),
        (
            ("tokens=trace", "tokens.path=a.jsonl", "tokens.concurrency=4", "tokens.prefix_caching=false"),
            "tokens.concurrency=4 tokens.path=a.jsonl tokens.prefix_caching=false",
        ),
        (("tokens.path='a b=1'",), r'tokens.path="a\u0020b=1"'),
        (("tokens.path='true'",), 'tokens.path="true"'),
        (
            ("hardware.pin_threads=true", "hardware.affinity=[0]", "hardware.threads=1"),
            "hardware.affinity=[0] hardware.pin_threads=true",
        ),
        (("hardware=h200",), ""),  # its data sheet stands beside what is measured
        (("model.layers=[1,14]",), "model.layers=[1,14]"),
        (("dtype=fp8", "dtype.layout=split", "dtype.tolerance=0.5"), "dtype.tolerance=0.5"),
        (("dtype.layout=split",), "dtype.layout=split"),  # of which the column says nothing in bfloat16
        (("strategy=uva", "lookup.order=sorted", "lookup.programs=null", "lookup.warps=8"), ""),
        (("strategy=uva", "lookup.sort_from_rows=1"), "lookup.sort_from_rows=1"),
        (("strategy=uva", "~lookup.warps"), "~lookup.warps"),
        (("strategy=uva", "lookup=triton", "lookup.rows_per_program=16", "lookup.programs=528"), ""),
        (("+lookup.foo=3",), "lookup.foo=3"),
        (("+lookup.order=sorted",), "lookup.order=sorted"),  # an option of a lookup that the column knows nothing of
        (("strategy.projection=host",), "strategy.projection=host"),
        (("shape=decode", "schedule=serial", "capture=none", "batches=7", "seed=3", "layer=15"), ""),
        (("experiment=crossover", "components=original"), ""),
        (("iterations=3", "budget_s=1", "cases=[full]", "limits=none", "output_dir=x", "resume=false"), ""),
    ],
)  # fmt: skip
def test_what_no_other_column_tells_is_told(overrides, options):
    assert options_of(*overrides) == options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (("lookup=mine",), ""),
        (("lookup=mine", "lookup.foo=3"), "lookup.foo=3"),
        (("experiment=mine",), "model.hc_mult=1"),
        (("experiment=mine", "model.hc_mult=4"), ""),
        (("shape=mine", "tokens=random"), "tokens.share=0.5"),
        (("hardware=mine",), "hardware.pin_threads=true"),
        (("strategy=mine",), "lookup.foo=3"),
        (("model=mine", "model.heads=4"), "model.heads=4"),
    ],
)
def test_presets_and_options_of_ones_own_are_told_too(tmp_path, overrides, options):
    for group, text in MINE.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
    assert options_of(f"hydra.searchpath=[file://{tmp_path}]", *overrides) == options


def test_without_hydra_every_value_of_an_unknown_choice_is_told(configure):
    config = configure("model.hc_mult=1")
    options = Job.create(config, {"strategy": "tiny", "model": "demo"}, Path("nowhere")).columns()["options"].split(" ")
    assert "model.hc_mult=1" in options
    assert "model.heads=8" not in options
    assert {"strategy.projection=device", "dtype.name=bfloat16"} <= set(options)


def test_a_job_keeps_them_from_one_process_to_the_next(tmp_path):
    job = job_of("model.hc_mult=1", "tokens.path='x y'")
    found = Job.create(job.config, job.choices, tmp_path)
    found.save()
    assert Job.load(tmp_path).columns() == found.columns()


def test_failed_rows_tell_them_too():
    job = job_of("model.hc_mult=1", "model.heads=0")
    assert {row["options"] for row in job.failed_rows("refused", "heads")} == {"model.hc_mult=1 model.heads=0"}


def test_a_sweep_tells_its_runs_apart(call_here, tmp_path):
    done = call_here("-m", "model.heads=1,2", "cases=[hashing]", "worker=inline")
    assert done.returncode == 0, done.stderr
    frame = load_results(tmp_path)
    assert [text.split(" ")[1] for text in frame["options"]] == ["model.heads=1", "model.heads=2"]
    assert (frame["layers"] == 2).all()
    head, first, *_ = done.stdout.split("median ms of every run")[1].split("\n")[1:]
    assert head.split() == ["options", "hashing"], "what was swept, and not the rows that follow from it"
    assert "model.heads=1" in first


EXPLICIT = (  # what auto comes to is no other measurement
    "lookup.order=as_asked", "lookup.rows_per_program=16", "lookup.programs=528", "batches=4", "hardware.threads=2",
)  # fmt: skip
MODEL = (override for override in TINY if override.startswith("model."))
BASE = job_of("strategy=uva", "tokens=random", "+lookup.foo=x", *EXPLICIT, *MODEL)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=6)
VALUES = {
    "model.hc_mult": st.integers(1, 4), "model.hidden_size": st.sampled_from([16, 32]), "model.bias": st.booleans(),
    "model.tokenizer": TEXTS, "model.layers": st.sampled_from([[1, 15], [1, 14], [1]]),
    "model.heads": st.integers(1, 3), "model.table_scale": st.sampled_from([0.5, 1.0]),
    "tokens.share": st.floats(0.01, 1), "tokens.history": st.booleans(), "hardware.pin_threads": st.booleans(),
    "hardware.threads": st.integers(1, 3), "hardware.affinity": st.sampled_from([None, [0]]),
    "capture": st.sampled_from(["none", "graph"]), "lookup.sort_from_rows": st.integers(0, 3),
    "lookup.order": st.sampled_from(["as_asked", "sorted", "partitioned"]),
    "lookup.programs": st.sampled_from([None, 4, 528]),
    "lookup.foo": st.one_of(TEXTS, st.integers(), st.booleans(), st.lists(TEXTS, max_size=2)),
    "upload.bar": st.one_of(TEXTS, st.none()), "seed": st.integers(0, 3), "batch_size": st.integers(1, 3),
    "batches": st.integers(4, 6), "schedule.ring_depth": st.integers(1, 2), "dtype.tolerance": st.floats(0.01, 0.5),
    "strategy.projection": st.sampled_from(["host", "device"]),
}  # fmt: skip
CHANGES = st.dictionaries(st.sampled_from(sorted(VALUES)), st.none(), max_size=6).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})
)


def changed(changes):
    config = OmegaConf.create(OmegaConf.to_container(BASE.config))
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(CHANGES, CHANGES, st.booleans())
def test_two_configurations_that_differ_never_share_all_of_it(one, other, near):
    if near:  # but for one value
        other = {**one, **dict(list(other.items())[:1])}
    configs = [changed(changes) for changes in (one, other)]
    rows = [Job.create(config, BASE.choices, Path("nowhere")).columns() for config in configs]
    told = [tuple((name, type(row.get(name)), row.get(name)) for name in GROUPED) for row in rows]
    assert (told[0] == told[1]) == (repr(configs[0]) == repr(configs[1]))


@given(st.dictionaries(st.sampled_from(["a.b", "a.c"]), st.one_of(TEXTS, st.none(), st.lists(TEXTS))))
def test_a_text_is_one_line_of_as_many_words_as_values(found):
    text = as_text(found, {})
    assert len(text.split()) == len(text.split(" ") if text else []) == len(found)
