"""Times that something else may have lengthened: which, why, and how they are told."""

import pandas as pd
import pytest
from common import ROOT

from engram_exp import compare, load_results
from engram_exp.analysis.disturbed import PREEMPTED, SLOWER, UNSTEADY, disturbance, disturbed
from engram_exp.results.schema import COLUMNS

NAN = float("nan")


def rows(*changes):
    """Rows of `hashing`, 50 samples of 20 ms, one second in all, on two threads."""
    base = dict.fromkeys(COLUMNS, "") | {
        "status": "ok", "case": "hashing", "strategy": "kv_on_gpu", "hashing": "numba", "steady": True, "threads": 2,
        "iterations": 50, "wall_ms_mean": 20.0, "wall_ms_median": 20.0, "device_ms_median": NAN, "preempted": 4,
    }  # fmt: skip
    return pd.DataFrame([{**base, "run_id": str(number), **change} for number, change in enumerate(changes)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"preempted": NAN}, ""),
        ({"preempted": 60}, ""),
        ({"preempted": 61}, PREEMPTED),
        ({"preempted": 61, "threads": 16}, ""),  # each of them has its handful
        ({"preempted": 5, "wall_ms_mean": 0.02}, ""),  # a thousandth of a second, but few samples are spoiled
        ({"preempted": 6, "wall_ms_mean": 0.02}, PREEMPTED),
        ({"preempted": 400, "graph_calls": 8}, ""),  # each of the samples was of so many calls: eight seconds
        ({"preempted": 481, "graph_calls": 8}, PREEMPTED),
        ({"preempted": 61, "graph_calls": 0}, PREEMPTED),
        ({"preempted": 200, "case": "step", "steps_per_sample": 4}, ""),  # likewise: four seconds
        ({"preempted": 241, "case": "step", "steps_per_sample": 4}, PREEMPTED),
        ({"preempted": 61, "case": "fetch", "steps_per_sample": 4}, PREEMPTED),  # called by itself
        ({"preempted": 61, "case": "full", "steps_per_sample": NAN}, PREEMPTED),
        ({"steady": False}, UNSTEADY),
        ({"steady": ""}, ""),
        ({"steady": NAN}, ""),  # unknown
        ({"steady": False, "preempted": 200}, f"{PREEMPTED}, {UNSTEADY}"),
        ({"steady": False, "status": "suspect"}, ""),
        ({"status": "crash", "iterations": NAN, "wall_ms_mean": NAN, "wall_ms_median": NAN, "preempted": NAN}, ""),
    ],
)
def test_a_row_says_why(change, why):
    assert disturbed(rows(change)).tolist() == [why]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ({}, {"wall_ms_median": 41.0}, True),
        ({}, {"wall_ms_median": 39.0}, False),
        ({}, {"wall_ms_median": 41.0, "strategy": "kv_on_cpu", "lookup": "gather", "schedule": "serial"}, True),
        ({}, {"wall_ms_median": 41.0, "hashing": "numpy"}, False),
        ({}, {"wall_ms_median": 41.0, "batch_size": 2}, False),
        ({}, {"wall_ms_median": 41.0, "options": "model.hc_mult=1"}, False),
        ({}, {"wall_ms_median": 41.0, "host": "other"}, False),
        ({}, {"wall_ms_median": 41.0, "git_sha": "other"}, False),
        ({"case": "projection"}, {"case": "projection", "wall_ms_median": 41.0, "device_ms_median": 41.0}, False),
        ({"case": "full"}, {"case": "full", "wall_ms_median": 41.0, "strategy": "kv_on_cpu"}, False),
        ({"steps_per_sample": 4}, {"steps_per_sample": 1, "wall_ms_median": 41.0}, False),
        ({"case": "full"}, {"case": "full", "wall_ms_median": 41.0}, True),
        ({"case": "layer"}, {"case": "layer", "wall_ms_median": 41.0, "strategy": "kv_on_cpu"}, False),
        ({"case": "lookup"}, {"case": "lookup", "wall_ms_median": 41.0, "table": "pinned"}, False),
        ({"case": "up_kv"}, {"case": "up_kv", "wall_ms_median": 41.0, "upload": "pageable"}, False),
        ({"status": "suspect", "wall_ms_median": 1e-6}, {}, False),
    ],
)
def test_the_same_component_takes_as_long_in_every_run(one, other, found):
    frame = pd.concat([rows(one), rows(other)])  # of one index: rows are told by their places
    assert disturbed(frame).tolist() == ["", SLOWER if found else ""]


def test_cases_are_named_and_counted():
    frame = rows({"steady": False}, {"steady": False, "preempted": 200}, {"case": "full", "preempted": 200}, {})
    text = "3 of 4 times were disturbed: 2 hashing, 1 full (2 not steady, 2 preempted)"
    assert disturbance(frame) == text
    assert compare(frame.iloc[3:], frame).attrs["disturbed"] == f"B: {text}"
    assert disturbance(rows({})) == disturbance(rows({})[:0]) == ""


def test_published_runs_tell_what_was_not_steady():
    frame = load_results(ROOT / "outputs/reference/h200")
    found = disturbed(frame)
    assert found[frame["steady"].eq(False)].str.contains(UNSTEADY).all()
    assert found.str.contains(UNSTEADY).sum() == 46
    assert (found == SLOWER).sum() == 4
