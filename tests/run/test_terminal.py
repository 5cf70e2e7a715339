"""What the user sees at the end of a sweep."""

import pandas as pd
import pytest

from engram_exp.results.schema import COLUMNS
from engram_exp.run.terminal import Terminal, _exposed, _waits


def summary(capsys, *changes, swept=()):
    base = dict.fromkeys(COLUMNS, "") | {"case": "full", "status": "ok", "wall_ms_median": 1.0}
    frame = pd.DataFrame([{**base, "run_id": str(n), **change} for n, change in enumerate(changes)])
    Terminal().summary(frame, swept)
    return [line.split() for line in capsys.readouterr().out.splitlines()[2:]]


def test_what_was_set_is_shown_where_it_varies(capsys):
    head, *lines = summary(capsys, {"options": "model.hc_mult=1"}, {})
    assert head == ["options", "full"]
    assert lines == [["model.hc_mult=1", "1.000"], ["1.000"]]


def test_what_does_not_apply_everywhere_tells_no_runs_apart(capsys):
    head, *_ = summary(capsys, {"programs": 8, "strategy": "uva"}, {"strategy": "kv_on_gpu"})
    assert head == ["strategy", "full"]


def bundles():
    """Two bundles at two sizes, one of which launches as the size asks for."""
    vllm = {"components": "vllm_0_33", "lookup": "vllm_0_33", "layout": "split", "programs": 132.0}
    tuned = {"components": "tuned_uva", "lookup": "triton_link", "layout": "packed", "programs": float("nan")}
    sizes = {1: {"batches": 256, "row_order": "as_asked"}, 8192: {"batches": 16, "row_order": "partitioned"}}
    order = {"row_order": "as_asked"}
    return [{**sizes[n], **of, **(order if of is vllm else {}), "batch_size": n} for of in (vllm, tuned) for n in sizes]


def test_what_follows_from_what_is_shown_needs_no_column(capsys):
    head, first, *_ = summary(capsys, *bundles())
    assert (head, first) == (["batch_size", "components", "full"], ["1", "vllm_0_33", "1.000"])
    head, *_ = summary(capsys, *bundles(), swept=["batch_size", "components", "dtype.layout"])
    assert head == ["batch_size", "components", "layout", "full"], "it was swept"
    head, *lines = summary(capsys, *bundles(), {**bundles()[0], "programs": 66.0})
    assert head == ["batch_size", "components", "programs", "full"]
    assert [line[2:] for line in lines] == [["132", "1.000"], ["132", "1.000"], ["1.000"], ["1.000"], ["66", "1.000"]]


def test_what_no_column_tells_is_shown_if_it_was_swept(capsys):
    runs = [{"used_rows": rows, "options": f"model.heads={heads}"} for heads, rows in ((1, 500), (2, 1000))]
    assert summary(capsys, *runs, swept=["model.heads"])[0] == ["options", "full"]


def test_what_a_step_exposes_has_a_column(capsys):
    none = dict.fromkeys([name for name in COLUMNS if name.startswith("exposed_ms")], float("nan"))
    step = {**none, "case": "step", "wall_ms_median": 3.5, "exposed_ms_median": 0.5}
    ready = {**none, "case": "ready", "wall_ms_median": 3.0}
    runs = {**ready, "run_id": "0"}, {**step, "run_id": "0"}, {**none, "case": "step", "status": "crash"}
    head, *lines = summary(capsys, *runs)
    assert head == ["ready", "step", "exposed"]
    assert lines == [["3.000", "3.500", "0.500"], ["crash"]]


def test_a_suspect_time_is_not_shown(capsys):
    assert summary(capsys, {"status": "suspect"}) == [["full"], ["suspect"]]


@pytest.mark.parametrize(
    ("case", "calls", "told"), [("projection", 8, 0), ("projection", 0, 1), ("ready", 8, 0), ("ready", 1, 1)]
)
def test_a_sample_of_several_calls_may_be_preempted_as_long_as_all_of_them_take(capsys, case, calls, told):
    of_a_sample = {"graph_calls": calls} if case == "projection" else {"graph_calls": 0, "steps_per_sample": calls}
    row = dict.fromkeys(COLUMNS) | {
        "case": case, "status": "ok", "wall_ms_median": 20.0, "wall_ms_mean": 20.0, "iterations": 50, "threads": 2,
        "preempted": 400, "gb_per_s": 0.1, "flops": 0, "tokens_per_s": 1.0, **of_a_sample,
    }  # fmt: skip
    Terminal().results([row])
    assert capsys.readouterr().out.count(f"{case}: disturbed") == told


def test_the_tokens_of_a_step_that_a_file_serves_are_told(capsys):
    row = dict.fromkeys(COLUMNS) | {
        "case": "lookup", "status": "ok", "wall_ms_median": 10.0, "wall_ms_mean": 10.0, "iterations": 5, "threads": 2,
        "gb_per_s": 0.1, "flops": 0, "tokens_per_s": 6400.0, "layers": 2, "asked_bytes": 1000, "page_cache": "cold",
        "read_amplification": 31.02,
    }  # fmt: skip
    told = "(cold) serves the tables of these tokens of a step: 32 in 10 ms, 64 in 20 ms, 160 in 50 ms; 31 bytes"
    Terminal().results([row])
    assert f"lookup: the file {told} are read for each" in capsys.readouterr().out
    Terminal().results([{**row, "case": "fetch", "read_amplification": None}])
    assert "64 in 10 ms, 128 in 20 ms, 320 in 50 ms\n" in capsys.readouterr().out, "of all layers already"
    Terminal().results([{**row, "case": "full"}, {**row, "asked_bytes": None}])
    assert "serves" not in capsys.readouterr().out


def test_what_may_be_nothing_says_so():
    row = {"exposed_ms_lo": None, "exposed_ms_hi": None, "hidden_share": 1.1}
    assert _exposed({**row, "exposed_ms_median": -0.9}).endswith("in place, which may be nothing")
    assert _exposed({**row, "exposed_ms_median": 0.9}).endswith("in place; 100% of fetching them is hidden")
    row |= {"exposed_ms_lo": -0.1, "exposed_ms_hi": 2.0}
    assert _exposed({**row, "exposed_ms_median": 0.9}).endswith("in place, which may be nothing")


@pytest.mark.parametrize(
    ("exposed_ms", "more", "says"),
    [
        (
            0.2,
            {},
            "its layers wait 0.1200 ms for their rows (1=0.1 14=0.02), and 0.0800 ms are a decoder that is slowed",
        ),
        (0.1, {}, "its layers wait 0.1200 ms for their rows (1=0.1 14=0.02)"),
        (0.1, {"exposed_limit_ms": 0.0, "exposed_limit_by": "link"}, "rows (1=0.1 14=0.02); all could be hidden"),
        (0.1, {"exposed_limit_ms": 0.05, "exposed_limit_by": "link"}, "; at least 0.0500 ms must be exposed, by link"),
        (
            0.1,
            {"exposed_limit_ms": 0.3, "exposed_limit_by": "link", "exposed_ms_hi": 0.2},
            "; at least 0.3000 ms must be exposed, by link, unless the decoder was quicker than with its rows in "
            "place, or the limit is wrong: less was",
        ),
    ],
)
def test_what_a_step_waits_for_is_told_apart_from_what_slows_it(exposed_ms, more, says):
    text = _waits({"waits_ms": "1=0.1 14=0.02", "exposed_ms_median": exposed_ms, **more})
    assert text.endswith(says)
