"""Tables of medians: all rows have a cell, and no cell mixes what differs without saying so."""

import warnings

import pandas as pd
import pytest

from engram_exp.analysis.summary import markdown
from engram_exp.results.schema import COLUMNS


def frame(*rows):
    base = dict.fromkeys(COLUMNS, "") | {"status": "ok", "case": "full", "strategy": "uva", "efficiency": float("nan")}
    return pd.DataFrame([{**base, "run_id": str(n), "wall_ms_median": 1.0, **row} for n, row in enumerate(rows)])


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_runs_of_a_configuration_share_a_cell():
    lookup = {"case": "lookup", "wall_ms_median": 12345.6}
    table = markdown(frame(*({"wall_ms_median": ms} for ms in (1.0, 2.0, 9.0)), lookup), ["strategy"])
    assert table == "| strategy | lookup | full |\n|---|---:|---:|\n| uva | 12346 | 2 |"


def test_empty_keys_are_kept():
    rows = frame({"chunk_tokens": 2048.0, "wall_ms_median": 2.0}, {"chunk_tokens": float("nan"), "wall_ms_median": 3.0})
    assert markdown(rows, ["chunk_tokens"]).splitlines()[2:] == ["| 2048 | 2 |", "|  | 3 |"]
    assert markdown(rows, ["strategy", "chunk_tokens"]).splitlines()[2:] == ["| uva | 2048 | 2 |", "| uva |  | 3 |"]
    assert markdown(rows, ["strategy"], columns="chunk_tokens").splitlines()[0] == "| strategy | 2048 |  |"


def test_cells_that_mix_workloads_or_machines_are_told():
    rows = frame({"model": "a", "batch_size": 1}, {"model": "b", "batch_size": 2, "device_name": "C"})
    with pytest.warns(UserWarning, match="cells mix several model, batch_size, device_name: medians over all of them"):
        markdown(rows, ["strategy"])
    markdown(rows, ["model"])


@pytest.mark.parametrize(
    "column", ["strategy", "components", "table", "row_order", "lookup", "programs", "git_sha", "git_dirty", "host"]
)
def test_cells_that_mix_ways_or_code_are_told(column):
    rows = frame({column: "a"}, {column: "b"})
    with pytest.warns(UserWarning, match=f"cells mix several {column}: medians over all of them"):
        markdown(rows, ["dtype"])
    markdown(rows, [column])


def test_runs_that_differ_in_options_never_share_a_cell():
    rows = frame({"options": "model.hc_mult=1"}, {"options": "", "wall_ms_median": 3.0})
    with pytest.warns(UserWarning, match=r"^runs differ in options: a line for each$"):
        lines = markdown(rows, ["strategy"]).splitlines()
    assert lines[0] == "| strategy | options | full |"
    assert lines[2:] == ["| uva |  | 3 |", "| uva | model.hc_mult=1 | 1 |"]
    assert markdown(rows, ["strategy"], columns="options").splitlines()[2:] == ["| uva | 3 | 1 |"]


def test_a_suspect_time_is_not_shown():
    rows = frame({}, {"wall_ms_median": 1e-6, "status": "suspect"})
    assert markdown(rows, ["strategy"]).splitlines()[2:] == ["| uva | 1 |"]


def test_only_a_number_of_samples_that_was_wanted_tells_measurements_apart():
    def samples(reason):
        return frame(*({"iterations": number, "stop_reason": reason} for number in (10, 20)))

    markdown(samples("budget"), ["strategy"])
    with pytest.warns(UserWarning, match="cells mix several iterations"):
        markdown(samples("iterations"), ["strategy"])


@pytest.mark.parametrize(
    ("index", "options", "says"),
    [
        (["case"], {}, r"case: wanted in two places \(lines: case; --columns: case; --value: wall_ms_median\)"),
        (["strategy", "strategy"], {}, "strategy: wanted in two places"),
        (["wall_ms_median"], {}, "wall_ms_median: wanted in two places"),
        (["strategy"], {"value": "limit_by"}, "--value limit_by: is no number; choose from .*wall_ms_median"),
        (["strategy"], {"value": "efficiency"}, "--value efficiency: is empty in all of these rows"),
    ],
)
def test_what_makes_no_table_is_refused(index, options, says):
    with pytest.raises(ValueError, match=says):
        markdown(frame({}), index, **options)
