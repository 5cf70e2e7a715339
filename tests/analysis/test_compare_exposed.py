"""What steps expose is compared by differences: it may be nothing, and has no ratio."""

from statistics import median

import pandas as pd
import pytest
from made_up import steps

from engram_exp.analysis.compare import compare_values


def exposed_of(a, b, **more):
    """The comparison of what steps with one strategy and another expose, us by run."""
    campaigns = [
        pd.concat([steps(name, {(64, 1): us}, runs=1, repeat=n, ready_ms=10 + n / 10) for n, us in enumerate(of_runs)])
        for name, of_runs in (("uva", a), ("kv_on_gpu", b))
    ]
    found = compare_values(pd.concat(campaigns), "strategy", "uva", "kv_on_gpu", **more)
    return found[found["case"] == "exposed"].to_dict("records")


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([114, 112, 115, 113], [88, 86, 90, 87], "faster"),  # 0.25 % of a step, whose decoders differ by 3 %
        ([88, 86, 90, 87], [114, 112, 115, 113], "slower"),
        ([-2, 1, 0, -1], [2, 3, 1, 2], "same"),  # within a thousandth of the step
        ([114, 112, 115, 113], [122, 123, 121, 120], "undecided"),  # clearly more, but perhaps by less than that
        ([-40, 80, 10, 0], [60, -30, 0, 20], "undecided"),
        ([114], [88], "undecided"),
    ],
)
def test_what_steps_expose_is_compared_by_differences(a, b, verdict):
    (row,) = exposed_of(a, b)
    assert (row["verdict"], row["runs_a"], row["runs_b"]) == (verdict, len(a), len(b))
    assert (row["wall_ms_a"], row["wall_ms_b"]) == (pytest.approx(median(a) / 1e3), pytest.approx(median(b) / 1e3))
    assert row["longer_ms"] == pytest.approx(median([y - x for x in a for y in b]) / 1e3)
    assert all(pd.isna(row[name]) for name in ("ratio", "ratio_lo", "ratio_hi"))


def test_what_steps_expose_is_a_case_like_others_though_it_needs_two():
    four = [114, 112, 115, 113], [88, 86, 90, 87]
    (row,) = exposed_of(*four)
    (alone,) = exposed_of(*four, case="exposed")
    assert alone.items() >= {name: value for name, value in row.items() if pd.notna(value)}.items()
    assert not exposed_of(*four, case="step")


def test_a_threshold_below_a_thousandth_holds_for_what_is_exposed_too():
    (row,) = exposed_of([114, 112, 115, 113], [122, 123, 121, 120], threshold=0.0001)
    assert row["verdict"] == "slower"
