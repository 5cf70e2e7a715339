"""What a text asks for again: the command, its files, what it refuses."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from common import H200, ROOT

from engram_exp.commands.reuse import _config, _write
from engram_exp.layer.profile import read_profile
from engram_exp.results.write import write_run
from engram_exp.reuse.points import measured_points
from engram_exp.run.workload import Workload

DEMO = ("model.vocab_per_order=[500,700]", "model.heads=2", "cache_dir={cache}")


def rows_of(config):
    return Workload(config).geometry.rows


def command(*arguments, **options):
    call = [sys.executable, "-m", "engram_exp", "reuse", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_a_text_has_its_curves(tmp_path, cache_dir):
    text = tmp_path / "again and again.txt"
    text.write_text("the same words again, and the same words again\n" * 60)
    demo = [part.format(cache=cache_dir) for part in DEMO]
    told = {"tokens": "text", "options": f"tokens.path={text}", "used_rows": rows_of(_config(str(text), demo, 1000))}
    measured = {**told, "batch_size": 4, "seq_len": 2, "unique_row_fraction": 0.75}
    (tmp_path / "campaign").mkdir()
    kept = {"cache_gb": 0.001, "cache_policy": "lru", "cache_hit_rate": 0.6}
    on_host = {"hot_gb": 0.002, "cache_policy": "lru", "cache_state": "steady", "hot_hit_rate": 0.8}
    found = [{}, {**kept, "cache_state": "steady"}, {**kept, "cache_state": "warm"}, {**kept, "cache_policy": "heads"}]
    found += [on_host, {**on_host, "cache_state": "cold"}]
    write_run(
        tmp_path / "campaign", {},
        [{"run_id": str(n), "status": "ok", "case": "lookup", **measured, **more} for n, more in enumerate(found)],
    )  # fmt: skip
    profile = tmp_path / "profile.npz"
    written = "--points", str(tmp_path / "campaign"), "--output", str(tmp_path / "out"), "--profile", str(profile)
    done = command(str(text), *demo, "--concurrency", "1", "--concurrency", "4", *written)
    assert done.returncode == 0, done.stderr
    assert "million a second" in done.stdout
    workload = Workload(_config(str(text), demo, 1000))
    kept = read_profile(profile, workload.parts.hash.plan)
    assert np.array_equal(kept, np.sort(workload.row_ids(1_000_000, 1).ravel())), "of the first number of streams"
    assert done.stdout.strip().endswith("reuse.svg")
    cache, steps = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("cache", "steps"))
    assert set(cache["concurrency"]) == set(steps["concurrency"]) == {1, 4}
    warm = cache[(cache["policy"] == "lru") & (cache["state"] == "warm") & (cache["order"] == "all")]
    assert (warm["hit_rate"] == 1).all(), "a text that repeats itself"
    assert set(cache["order"]) == {"all", "2", "3"}
    svg = (tmp_path / "out" / "reuse.svg").read_text()
    assert "hit rate of a row cache" in svg
    assert "measured, tokens of a sequence" in svg
    assert pd.read_csv(tmp_path / "out/points.csv").to_dict("list") == {
        "sequences": [4], "seq_len": [2], "step_tokens": [8], "distinct_share": [0.75],
    }  # fmt: skip
    assert "hit rate, measured" in done.stdout
    assert pd.read_csv(tmp_path / "out/hits.csv").to_dict("list") == {
        "sequences": [4, 4], "seq_len": [2, 2], "cache_gb": [0.001, 0.002], "policy": ["lru", "lru"],
        "hit_rate": [0.6, 0.8],
    }  # fmt: skip


def test_without_the_extra_there_are_tables_and_no_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "engram_exp.pages.reuse", raising=False)  # which imports it
    monkeypatch.setitem(sys.modules, "altair", None)
    table = pd.DataFrame({"hit_rate": [0.5]})
    with pytest.warns(UserWarning, match="out has no reuse.svg: altair is not installed .pip install -e '.*report"):
        _write(tmp_path / "out", table, table, {})
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cache.csv", "steps.csv"]


def test_tokens_may_be_a_text_ids_or_a_source(tmp_path, cache_dir):
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    overrides = [part.format(cache=cache_dir) for part in DEMO]
    rows = {
        name: Workload(_config(str(tokens), overrides, 1000)).row_ids(1000, 1)
        for name, tokens in (("ids", tmp_path / "ids.npy"), ("random", "random"), ("zipf", "zipf"))
    }
    assert rows["ids"].shape == (12, 4)
    assert rows["random"].shape == rows["zipf"].shape == (1000, 4)
    distinct = {name: len(np.unique(found)) for name, found in rows.items()}
    assert distinct["zipf"] < distinct["random"]


def test_streams_take_turns(tmp_path, cache_dir):
    np.save(tmp_path / "ids.npy", np.arange(1, 13).reshape(1, 12))
    workload = Workload(_config(str(tmp_path / "ids.npy"), [part.format(cache=cache_dir) for part in DEMO], 1000))
    one, three = workload.row_ids(1000, 1), workload.row_ids(1000, 3)
    in_turn = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert np.array_equal(three, one[in_turn]), "a stream goes on from the ids before it"


@pytest.mark.parametrize(
    ("name", "content", "option"),
    [
        ("a.npy", np.zeros((2, 3), int), "ids"),
        ("a.npy", np.zeros(6, int), "trace"),
        ("a.npz", np.zeros((1, 2, 3), int), "trace"),
        ("a.jsonl", '{"text": "a"}', "text"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "trace"),
        ("a.jsonl", "", "text"),
        ("a.txt", "a", "text"),
    ],
)
def test_what_a_file_holds_says_how_it_is_read(tmp_path, name, content, option):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".npz":
        np.savez(path, ids=content)
    else:
        np.save(path, content)
    config = _config(str(path), [], 1000)
    assert config.tokens._target_.split(".")[-2] == option
    assert config.tokens.path == str(path)


@pytest.mark.parametrize("concurrency", [1, 3, 4])
def test_batches_of_a_run_ask_for_the_rows_of_the_curves(tmp_path, cache_dir, concurrency):
    np.save(tmp_path / "trace.npy", np.random.default_rng(0).integers(9, size=48))
    overrides = [part.format(cache=cache_dir) for part in DEMO]
    overrides += [f"tokens.concurrency={concurrency}", "batch_size=4", "seq_len=1", "batches=12"]
    workload = Workload(_config(str(tmp_path / "trace.npy"), overrides, 1000))
    assert workload.concurrency == concurrency
    asked = [workload.parts.hash.plan.row_ids(*batch).flatten(0, 1).numpy() for batch in workload.parts.batches]
    assert np.array_equal(np.concatenate(asked), workload.row_ids(1000, concurrency))


def test_a_trace_of_steps_has_its_own_streams(tmp_path, cache_dir):
    np.save(tmp_path / "trace.npy", np.arange(24).reshape(4, 3, 2))
    workload = Workload(_config(str(tmp_path / "trace.npy"), [part.format(cache=cache_dir) for part in DEMO], 1000))
    assert workload.concurrency == 3
    assert workload.row_ids(12, 3).shape[0] == 12
    assert np.array_equal(workload.row_ids(12, 3), workload.row_ids(24, 3)[:12]), "the head of each stream"


@pytest.mark.parametrize(
    ("tokens", "overrides", "says"),
    [
        (
            "nowhere.txt",
            [],
            r"nowhere.txt: no such file or folder, and none of the options ids, random, text, trace, zipf",
        ),
        ("random", ["model=nobodys"], r"(?s).*Could not find 'model/nobodys'"),
        ("random", ["layer=99"], r"layer=99"),
        ("zipf", ["tokens.exponent=-1"], r"tokens.exponent=-1"),
    ],
)
def test_what_has_no_curve_is_refused(cache_dir, tokens, overrides, says):
    with pytest.raises(ValueError, match=says):
        Workload(_config(tokens, [f"cache_dir={cache_dir}", *overrides], 1000)).row_ids(100, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "options"), [("random", ()), ("text", ("model=deepseek_v41_flash", "dtype=fp8"))])
def test_published_runs_lie_on_the_curves(cache_dir, tokens, options):
    workload = Workload(_config(tokens, [f"cache_dir={cache_dir}", *options], 2**16))
    points, _ = measured_points(H200, tokens, workload.geometry.rows, has_path=False)
    sequences = points[(points["seq_len"] == 1) & (points["sequences"] <= 2**12)]
    assert len(sequences) == (7 if tokens == "random" else 1)
    for point in sequences.itertuples():
        row_ids = workload.row_ids(2**14, point.sequences)[: point.sequences]
        assert len(np.unique(row_ids)) / row_ids.size == pytest.approx(point.distinct_share, abs=0.02)


def test_points_of_other_workloads_are_refused(cache_dir):
    rows = rows_of(_config("random", [f"cache_dir={cache_dir}"], 1000))
    for tokens, of_table, has_path in (("zipf", rows, False), ("random", rows + 1, False), ("random", rows, True)):
        with pytest.raises(
            ValueError, match=rf"no run with tokens={tokens}, \w+ tokens.path and a table of {of_table:,} rows"
        ):
            measured_points(H200, tokens, of_table, has_path=has_path)


def test_too_few_ids_for_their_streams_are_refused(tmp_path, cache_dir):
    np.save(tmp_path / "ids.npy", np.arange(4).reshape(1, 4))
    workload = Workload(_config(str(tmp_path / "ids.npy"), [f"cache_dir={cache_dir}"], 1000))
    with pytest.raises(ValueError, match="has 1 ids for each of 3 streams, fewer than two"):
        workload.row_ids(1000, 3)
