"""Comparisons: paired by what is the same, decided by runs, and silent where there is nothing to say."""

import random

import pandas as pd
import pytest
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from engram_exp import load_results
from engram_exp.analysis.compare import ComparisonError, compare, compare_values
from engram_exp.results.schema import COLUMNS


def runs(times, **columns):
    """Rows of `full`, one for each run."""
    base = dict.fromkeys(COLUMNS, "") | {"status": "ok", "case": "full", "strategy": "uva", "batch_size": 64}
    return pd.DataFrame([{**base, "run_id": str(n), "wall_ms_median": t, **columns} for n, t in enumerate(times)])


def test_repetitions_on_which_auto_decided_differently_are_compared_as_one():
    asked = {"by_auto": "row_order", "lookup": "triton_link"}
    side = pd.concat([runs([1.0, 1.0], row_order=order, **asked) for order in ("as_asked", "partitioned")])
    typed = runs([2.0] * 4, row_order="sorted", lookup="triton_link")
    (found,) = compare(side, side).to_dict("records")
    assert (found["row_order"], found["runs_a"], found["ratio"]) == ("auto", 4, 1.0)
    (found,) = compare_values(pd.concat([side, typed]), "row_order", "auto", "sorted").to_dict("records")
    assert (found["row_order"], found["runs_a"], found["ratio"]) == ("auto / sorted", 4, 2.0)


@settings(max_examples=20, deadline=None)
@given(
    a=st.lists(st.integers(95, 105), min_size=4, max_size=8), b=st.lists(st.integers(95, 105), min_size=4, max_size=8)
)
@pytest.mark.slow
def test_swapped_sides_get_the_opposite_verdict(a, b):
    opposite = {"faster": "slower", "slower": "faster"}
    threshold = 2**0.5 / 50  # which no ratio of these equals
    there, back = (
        compare(*sides, threshold=threshold)["verdict"].item() for sides in ((runs(a), runs(b)), (runs(b), runs(a)))
    )
    assert back == opposite.get(there, there)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([10.0, 10.1, 10.2, 10.1, 10.0], [8.0, 8.1, 8.2, 8.1, 8.0], "faster"),
        ([8.0, 8.1, 8.2, 8.1, 8.0], [10.0, 10.1, 10.2, 10.1, 10.0], "slower"),
        ([10.0, 10.01, 10.02, 9.99, 10.0], [10.0, 10.02, 9.98, 10.01, 10.0], "same"),
        ([10.0, 10.01, 10.02, 10.0, 10.01], [10.1, 10.11, 10.12, 10.1, 10.11], "same"),  # significant, but 1 %
        ([10.0] * 4, [10.0 / 1.0202] * 4, "faster"),  # 1.98 % less, and as far apart as 2.02 % more
        ([10.0] * 4, [10.0 / 1.0198] * 4, "same"),
        ([10.0, 14.0, 9.0, 12.0, 8.0], [11.0, 13.0, 9.5, 8.5, 12.5], "undecided"),
        ([10.0], [5.0], "undecided"),
    ],
)
def test_verdicts(a, b, verdict):
    (row,) = compare(runs(a), runs(b)).to_dict("records")
    assert row["verdict"] == verdict
    assert (row["runs_a"], row["runs_b"]) == (len(a), len(b))


SAME = {
    (lease, *configuration): medians
    for lease in ("first_lease", "second_lease")
    for configuration, medians in load_results(ROOT / "outputs/reference/h200/same" / lease)
    .groupby(["strategy", "shape", "lookup"])["wall_ms_median"]
    .agg(list)
    .items()
}


@pytest.mark.parametrize("configuration", [key for key, medians in SAME.items() if len(medians) >= 8])
@pytest.mark.slow
def test_a_against_a_is_never_decided_on_real_runs(configuration):
    """All runs of a configuration, dealt to two sides: 100 times, at most 5 of them may call one side faster."""
    medians, dealer, deals = list(SAME[configuration]), random.Random(0), []
    for number in range(100):
        dealer.shuffle(medians)
        half = len(medians) // 2
        deals.append((runs(medians[:half], seed=number), runs(medians[half:], seed=number)))
    verdicts = compare(*(pd.concat(side) for side in zip(*deals, strict=True)))["verdict"]
    assert len(verdicts) == 100
    assert verdicts.isin(["faster", "slower"]).sum() <= 5


def test_a_difference_of_a_tenth_is_found_among_the_same_runs():
    medians = SAME["first_lease", "uva", "original", "triton"]
    half = len(medians) // 2
    assert compare(runs(medians[:half]), runs([1.1 * t for t in medians[half:]]))["verdict"].tolist() == ["slower"]


@pytest.mark.slow
def test_only_what_is_comparable_is_paired():
    a = pd.concat([runs([1.0], batch_size=1), runs([2.0], batch_size=64), runs([3.0], batch_size=64, status="crash")])
    b = pd.concat([runs([4.0], batch_size=64), runs([5.0], batch_size=256)])
    (row,) = compare(a, b).to_dict("records")
    assert (row["batch_size"], row["wall_ms_a"], row["wall_ms_b"]) == (64, 2.0, 4.0)


@pytest.mark.parametrize(
    ("a", "b", "unpaired"),
    [
        ([{}], [{}], ""),
        ([{}, {"batch_size": 1}, {"batch_size": 4}], [{}], "2 of A, 0 of B; they differ in batch_size"),
        (
            [{}, {"warps": 4, "lookup": "x"}],
            [{}, {"warps": 8, "lookup": "y"}],
            "1 of A, 1 of B; they differ in lookup, warps",
        ),
        (
            [{"warps": 4, "seed": 0}, {"warps": 8, "seed": 1}, {"warps": 8, "seed": 0}],
            [{"warps": 4, "seed": 0}, {"warps": 8, "seed": 1}],
            "1 of A, 0 of B; they differ in how values of several columns are combined",
        ),
        ([{}, {"case": "up_ids"}], [{}], "1 of A, 0 of B (up_ids); they differ in case"),
        (
            [{}, {"case": "lookup", "graph_calls": 8}],
            [{}, {"case": "lookup", "graph_calls": 0}],
            "1 of A, 1 of B (lookup); they differ in graph_calls",
        ),
    ],
)
def test_what_has_no_partner_is_told(a, b, unpaired):
    sides = [pd.concat([runs([1.0], **columns) for columns in side]) for side in (a, b)]
    assert compare(*sides).attrs["unpaired"] == unpaired


def test_one_case_is_compared_by_itself():
    a, b = (pd.concat([runs([ms] * 4), runs([2 * ms] * 4, case=case)]) for ms, case in ((1, "up_ids"), (2, "up_rows")))
    found = compare(a, b, case="full")
    assert (found["case"].tolist(), found["ratio"].tolist(), found.attrs["unpaired"]) == (["full"], [2], "")
    with pytest.raises(ComparisonError, match=r"^side B holds no measured case up_ids; it has full, up_rows$"):
        compare(a, b, case="up_ids")


def test_what_strategies_choose_by_themselves_is_decided_at_each_size():
    uva = [{"batch_size": 1, "row_order": "as_asked"}, {"batch_size": 64, "row_order": "sorted"}]
    sides = [
        pd.concat([runs([1.0], strategy="uva", **columns) for columns in uva]),
        pd.concat([runs([2.0], strategy="device", batch_size=size, row_order="as_asked") for size in (1, 64)]),
    ]
    found = compare(*sides)
    assert found["batch_size"].tolist() == [1, 64]
    assert found["row_order"].tolist() == ["as_asked", "sorted / as_asked"]
    assert found.attrs["unpaired"] == ""


def test_strategies_that_both_sides_have_are_not_mixed_up_where_they_miss_some():
    both = {"batch_size": 64}
    a = pd.concat([runs([1.0], strategy="uva", batch_size=1), *(runs([1.0], strategy=s, **both) for s in ("uva", "x"))])
    b = pd.concat([runs([1.0], strategy="x", batch_size=1), *(runs([1.0], strategy=s, **both) for s in ("uva", "x"))])
    found = compare(a, b)
    assert found["batch_size"].tolist() == [64, 64]
    assert found.attrs["unpaired"] == "1 of A, 1 of B; they differ in how values of several columns are combined"


def test_what_does_not_apply_on_one_side_hides_no_run_of_the_other():
    nan = float("nan")
    gathered = runs([2.0, 2.0], strategy="kv_on_gpu", lookup="gather", programs=nan, rows_per_program=nan)
    one_per_block, several = (
        runs([ms], strategy="uva", lookup="triton", programs=programs, rows_per_program=16.0)
        for ms, programs in ((3.0, nan), (1.0, 264.0))
    )
    found = compare(gathered, pd.concat([one_per_block, several]))
    assert found[["lookup", "programs", "ratio"]].to_dict("split")["data"] == [
        ["gather / triton", "- / null", 1.5],
        ["gather / triton", "- / 264", 0.5],
    ]
    assert found.attrs["unpaired"] == ""
    again = compare(pd.concat([one_per_block, several]), one_per_block)
    assert (again["programs"].tolist(), again.attrs["unpaired"]) == (
        ["null"],
        "1 of A, 0 of B; they differ in programs",
    )


def test_runs_of_several_machines_on_one_side_are_told():
    both = pd.concat([runs([1.0], host="p", driver="1"), runs([2.0], host="q", driver="2")])
    assert compare(both, both)["mixed"].tolist() == ["driver, host"]
    assert compare(runs([1.0, 2.0]), runs([1.0]))["mixed"].tolist() == [""]


@pytest.mark.slow
def test_what_a_machine_sets_by_default_differs_on_another():
    a, b = runs([1.0], threads=2, batches=4, host="p"), runs([2.0], threads=16, batches=8, host="q")
    with pytest.raises(ComparisonError, match="in host; --other-machine"):
        compare(a, b)
    (row,) = compare(a, b, other_machine=True).to_dict("records")
    assert (row["threads"], row["batches"], row["ratio"]) == ("2 / 16", "4 / 8", 2)
    assert row["marked"] == "host, threads, batches"
    with pytest.raises(ComparisonError, match="the sides differ in threads, batches"):
        compare(a, b.assign(host="p"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["model.hc_mult=1", "tokens.share=0.1", "hardware.pin_threads=true", "lookup.foo=3"]
)
def test_runs_that_differ_in_options_are_never_compared_but_by_them(options):
    a, b = runs([1.0] * 4), runs([2.0] * 4, options=options)
    with pytest.raises(ComparisonError, match="the sides differ in options; --by options compares two of one folder"):
        compare(a, b)
    found = compare(pd.concat([a, b]), b)
    assert (len(found), found["ratio"].item(), found["options"].item()) == (1, 1, options)
    assert found.attrs["unpaired"] == "1 of A, 0 of B; they differ in options"
    assert compare_values(pd.concat([a, b]), "options", "", options)["ratio"].tolist() == [2]


def test_options_go_along_with_the_choice_that_has_them():
    gather = runs([4.0], lookup="gather")
    mine = pd.concat([runs([ms], lookup="mine", options=f"lookup.foo={ms:g}") for ms in (1.0, 2.0)])
    found = compare_values(pd.concat([gather, mine]), "lookup", "gather", "mine")
    assert dict(zip(found["options"], found["ratio"], strict=True)) == {
        "- / lookup.foo=1": 0.25,
        "- / lookup.foo=2": 0.5,
    }
    asked = pd.concat([gather, runs([1.0], lookup="mine", options="lookup.foo=1 model.hc_mult=1")])
    with pytest.raises(ComparisonError, match="the sides differ in options"):
        compare_values(asked, "lookup", "gather", "mine")
    rows = pd.concat([runs([1.0], row_bytes=128), runs([2.0], row_bytes=512, options="model.row_values=256")])
    assert compare_values(rows, "row_bytes", "128", "512")["ratio"].tolist() == [2]
    with pytest.raises(ComparisonError, match="the sides differ in options"):
        compare_values(rows.replace({"model.row_values=256": "model.hc_mult=1"}), "row_bytes", "128", "512")


def test_a_suspect_time_decides_nothing():
    a, b = runs([1.0] * 4), runs([2.0] * 4)
    fast = runs([1e-6] * 4, status="suspect")
    assert_frame_equal(compare(pd.concat([a, fast]), pd.concat([b, fast])), compare(a, b))
    with pytest.raises(ComparisonError, match=r"side A holds no measured case \(4 suspect\)"):
        compare(fast, b)


def test_folders_are_compared_and_errors_say_which_side(tmp_path):
    lease = ROOT / "outputs/reference/h200/same/first_lease"
    found = compare(str(lease), lease)
    assert_frame_equal(found, compare(load_results(lease), lease))
    assert found["ratio"].tolist() == [1] * len(found)
    with pytest.raises(FileNotFoundError, match=r"^side A: .*missing: no such file or folder"):
        compare(tmp_path / "missing", lease)
    with pytest.raises(ValueError, match=r"^side B: .*: no results below it"):
        compare(lease, tmp_path)


def test_two_values_of_a_column_are_compared_with_what_goes_with_them():
    frame = pd.concat(
        [
            runs([1.0, 1.0], strategy="uva", hashing="triton", chunk_tokens=float("nan")),
            runs([2.0, 2.0], strategy="kv_on_gpu", hashing="numba", chunk_tokens=2048.0),
        ]
    )
    (row,) = compare_values(frame, "strategy", "uva", "kv_on_gpu").to_dict("records")
    assert row["ratio"] == 2
    (row,) = compare_values(frame.assign(strategy="x", dtype=["fp8"] * 2 + ["bf"] * 2), "dtype", "fp8", "bf").to_dict(
        "records"
    )
    assert row["ratio"] == 2
    with pytest.raises(ComparisonError, match="strategy is never device; it is kv_on_gpu, uva"):
        compare_values(frame, "strategy", "uva", "device")
    with pytest.raises(ComparisonError, match="no column weather"):
        compare_values(frame, "weather", "good", "bad")


def test_what_cannot_be_compared_says_why():
    with pytest.raises(ComparisonError, match="no configuration in common: the sides differ in batch_size"):
        compare(runs([1.0], batch_size=1), runs([1.0], batch_size=2))
    with pytest.raises(ComparisonError, match="side B holds no measured case"):
        compare(runs([1.0]), runs([1.0], status="crash"))
    with pytest.raises(ComparisonError, match="the sides differ in torch_version, driver; --other-machine"):
        compare(runs([1.0], driver="1", torch_version="2.11"), runs([1.0], driver="2", torch_version="2.13"))
    marked = compare(runs([1.0], driver="1"), runs([1.0], driver="2"), other_machine=True)
    assert marked["marked"].tolist() == ["driver"]


def test_the_published_campaign_compares():
    frame = load_results(ROOT / "outputs/reference/h200/crossover")
    found = compare_values(frame, "strategy", "kv_on_gpu", "uva")
    full = found[found["case"] == "full"]
    sizes = [set(frame.loc[frame["strategy"] == name, "batch_size"]) for name in ("kv_on_gpu", "uva")]
    assert set(full["batch_size"]) == sizes[0] & sizes[1]
    assert len(full) == 10
    assert (full["ratio"] < 1).all()
    without = full["ratio_lo"].isna()
    assert set(full.loc[without, "verdict"]) <= {"undecided"}
    assert (full.loc[~without, "ratio_lo"] <= full.loc[~without, "ratio_hi"]).all()
