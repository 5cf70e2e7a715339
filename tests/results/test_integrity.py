"""Results that a hand has changed are found, whatever number it changed."""

import shutil

import pandas as pd
import pytest
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp import load_results
from engram_exp.results.integrity import check_row
from engram_exp.results.schema import NUMBER_COLUMNS, TRUTH_COLUMNS

PUBLISHED = ROOT / "outputs/reference/h200/text/0/results.csv"
ROWS = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False).to_dict("records")
TIED = (  # columns that others follow from
    "wall_ms_median", "bytes_moved", "gb_per_s", "tokens_per_s", "batch_size", "seq_len", "limit_ms", "efficiency",
)  # fmt: skip


def check(row):
    check_row(row, NUMBER_COLUMNS.intersection(row), TRUTH_COLUMNS)


def test_published_rows_pass():
    for row in ROWS:
        check(row)


@settings(max_examples=200)
@given(st.sampled_from(ROWS), st.sampled_from(TIED), st.floats(0.1, 10).filter(lambda factor: abs(factor - 1) > 1e-4))
def test_a_changed_number_is_found(row, column, factor):
    if not row[column] or float(row[column]) == 0:
        return
    changed = float(row[column]) * factor
    with pytest.raises(ValueError, match="was it edited"):
        check({**row, column: repr(changed)})


@pytest.mark.parametrize(
    ("column", "text", "says"),
    [
        ("wall_ms_median", "fast", "wall_ms_median is 'fast', not a number"),
        ("table_bytes", "inf", "table_bytes is 'inf', not a number"),
        ("steady", "yes", "steady is 'yes', not True or False"),
        ("wall_ms_lo", "1e9", "wall_ms_lo=1e9 is above wall_ms_median="),
        ("wall_ms_p95", "1e9", "is above wall_ms_max="),
        ("efficiency", "0.999", "efficiency=0.999 does not follow from wall_ms_median="),
    ],
)
def test_what_is_wrong_is_named(column, text, says):
    row = next(row for row in ROWS if row[column] or column == "wall_ms_p95")
    with pytest.raises(ValueError, match=says):
        check({**row, column: text})


@pytest.mark.filterwarnings("ignore:.*unchecked run")
def test_an_edited_file_is_left_out_even_without_its_record(tmp_path):
    without_digests = shutil.ignore_patterns("environment.json")
    for number in (0, 1):
        shutil.copytree(PUBLISHED.parents[1] / str(number), tmp_path / str(number), ignore=without_digests)
    edited = tmp_path / "0/results.csv"
    median = ROWS[-1]["wall_ms_median"]
    edited.write_text(edited.read_text().replace(f",{median},", ",1.5,"))
    with pytest.warns(UserWarning, match=r"0/results\.csv is left out: line \d+: .*was it edited"):
        frame = load_results(tmp_path)
    assert frame["run_id"].nunique() == 1
