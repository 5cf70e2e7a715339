"""How rows are read: the order, and the launch that goes with it. Nothing here needs PyTorch."""

from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engram_exp.errors import ConfigError
from engram_exp.steps.lookup.order import (
    BUCKET_BYTES,
    CLEARLY_SLOWER,
    DENSE_ROWS,
    MOST_BUCKETS,
    SORT_FROM_ROWS,
    Launch,
    bucket_shift,
    check_launch,
    check_order,
    launches,
    reading,
)

GB = 10**9
LINK = {"sort_from_rows": 16384, "rows": 10**6, "row_bytes": 264, "table": "host", "table_bytes": 64 * GB}


def auto(order="auto", **changes):
    return reading(order, "auto", "auto", **{**LINK, **changes})


@pytest.mark.parametrize(
    ("order", "rows", "table", "expected"),
    [
        ("as_asked", 10**6, "host", "as_asked"),
        ("sorted", 1, "device", "sorted"),
        ("partitioned", 1, "device", "partitioned"),
        ("auto", 16384, "host", "partitioned"),
        ("auto", 16383, "host", "as_asked"),
        ("auto", 10**6, "device", "as_asked"),  # device memory gains nothing
        ("auto", 2**23, "host", "sorted"),  # 3.5 % of the table's rows
        ("auto", 2**23, "device", "as_asked"),
    ],
)
def test_rows_are_put_in_order_where_that_pays(order, rows, table, expected):
    assert auto(order, rows=rows, table=table).order == expected


@pytest.mark.parametrize("order", ["sorted", "partitioned"])
@pytest.mark.parametrize(
    ("table_gb", "rows", "launch"),
    [
        (1.3, 196_608, (16, 528)),
        (17.7, 24_576, (1, 132)),
        (17.7, 196_608, (1, None)),
        (64, 24_576, (32, 16)),
        (64, 196_608, (1, None)),
        (101, 196_608, (1, None)),  # larger than any that was measured: as the largest
    ],
)
def test_the_launch_is_the_best_of_those_that_were_measured(order, table_gb, rows, launch):
    assert auto(order, rows=rows, table_bytes=int(table_gb * GB))[1:] == launch
    assert auto("as_asked", rows=rows, table_bytes=int(table_gb * GB))[1:] == (16, 528)
    assert auto("as_asked", rows=24, table_bytes=int(table_gb * GB))[1:] == (1, None), "a token's"
    assert auto(order, rows=rows, table_bytes=int(table_gb * GB), table="device")[1:] == (32, None)


@given(
    order=st.sampled_from(["as_asked", "sorted", "partitioned", "auto"]), rows=st.integers(1, 2**31),
    table=st.sampled_from(["host", "device"]), table_bytes=st.integers(1, 2**40), rows_per_program=st.integers(0, 10),
    programs=st.sampled_from([None, 1, 7, 528, "multiprocessors", "half_beside"]), multiprocessors=st.integers(1, 200),
)  # fmt: skip
def test_what_is_typed_wins_and_what_is_not_can_be_launched(
    order, rows, table, table_bytes, rows_per_program, programs, multiprocessors
):
    asked = {**LINK, "rows": rows, "table": table, "table_bytes": table_bytes, "multiprocessors": multiprocessors}
    typed = reading(order, 2**rows_per_program, programs, **asked)
    assert typed[1:] == (2**rows_per_program, multiprocessors if isinstance(programs, str) else programs)
    found = reading(order, "auto", "auto", **asked)
    assert found.order == typed.order == (order if order != "auto" else found.order) != "auto"
    check_order(found.order)
    check_launch(found.rows_per_program, 4, found.programs)


class Times(NamedTuple):
    """Made-up times of a machine; `of_sorted` of sorted row ids."""

    as_asked: dict
    of_sorted: dict
    partition: float

    def of_reads(self, order, rows, row_bytes, table_bytes):
        return {"as_asked": self.as_asked, "sorted": self.of_sorted}[order]

    def of_partition(self, rows, table_bytes):
        return self.partition

    def of(self, found):
        """What a reading takes by these times."""
        launch = Launch(*found[1:])
        return {
            "as_asked": lambda: self.as_asked[launch],
            "sorted": lambda: self.of_sorted[launch],
            "partitioned": lambda: self.of_sorted[launch] + self.partition,
        }[found.order]()  # fmt: skip


MEASURED = launches(132)
SPANS = st.floats(0.1, 100)
TIMES = st.builds(
    Times, *[st.fixed_dictionaries(dict.fromkeys(MEASURED, SPANS))] * 2, partition=SPANS
)  # fmt: skip
AUTO_OR_TYPED = st.one_of(st.just("auto"), st.sampled_from(MEASURED))


@given(times=TIMES, order=st.sampled_from(["auto", "as_asked", "sorted", "partitioned"]), typed=AUTO_OR_TYPED,
       only=st.sampled_from([(True, True), (True, False), (False, True)]))  # fmt: skip
def test_nothing_that_agrees_with_what_is_typed_is_clearly_faster(times, order, typed, only):
    launch = ["auto", "auto"]
    if typed != "auto":
        launch = [number if taken else "auto" for number, taken in zip(typed, only, strict=True)]
    found = reading(order, *launch, **{**LINK, "sort_from_rows": "auto"}, times=times)
    orders = ["as_asked", "partitioned"] if order == "auto" else [order]
    others = [
        (each, *other)
        for each in orders
        for other in MEASURED
        if all(value in ("auto", own) for value, own in zip(launch, other, strict=True))
    ]
    assert found in others
    usual, best = reading(order, *launch, **LINK), min(times.of(reading(*other, **LINK)) for other in others)
    is_as_good = usual in others and times.of(usual) <= CLEARLY_SLOWER * best
    assert found == usual if is_as_good else times.of(found) == best


ALIKE = st.fixed_dictionaries(dict.fromkeys(MEASURED, st.floats(1, CLEARLY_SLOWER)))


@given(times=st.builds(Times, ALIKE, ALIKE, st.just(0.0)), rows=st.integers(1, 2**20))
def test_what_takes_about_as_long_is_decided_alike_however_it_was_measured(times, rows):
    asked = {"sort_from_rows": "auto", "rows": rows}
    assert auto(**asked, times=times) == auto(**asked)


@given(times=TIMES, rows=st.integers(1, 2**20))
def test_a_number_of_rows_that_is_typed_decides_the_order_and_times_the_launch(times, rows):
    found = reading("auto", "auto", "auto", **{**LINK, "sort_from_rows": 1000, "rows": rows}, times=times)
    assert found.order == ("partitioned" if rows >= 1000 else "as_asked")
    best = min(times.of(reading(found.order, *other, **LINK)) for other in MEASURED)
    assert times.of(found) <= CLEARLY_SLOWER * best


@given(times=TIMES, order=st.sampled_from(["auto", "sorted"]), launch=st.sampled_from([(8, "auto"), (8, 7), (1, 7)]),
       rows=st.integers(1, 2**20))  # fmt: skip
def test_a_launch_that_was_not_measured_takes_nothing_from_those_that_were(times, order, launch, rows):
    asked = {**LINK, "sort_from_rows": "auto", "rows": rows}
    assert reading(order, *launch, **asked, times=times) == reading(order, *launch, **asked)


@pytest.mark.parametrize("rows", [24, 1536, 196_608])
@pytest.mark.parametrize("order", ["as_asked", "partitioned"])
def test_beside_a_decoder_few_programs_read(order, rows):
    assert auto(order, rows=rows, beside=True)[1:] == (32, 16)
    assert auto(order, rows=rows, beside=True, table="device")[1:] == (32, None)


@given(times=TIMES, rows=st.integers(1, 2**20), multiprocessors=st.integers(1, 200))
def test_beside_a_decoder_a_launch_costs_what_it_holds_of_the_device(times, rows, multiprocessors):
    def cost(order, launch):
        blocks = -(-rows // launch.rows_per_program)
        held = min(launch.programs or blocks, blocks, multiprocessors) / multiprocessors
        if order == "as_asked":
            return times.as_asked[launch] * held
        return times.partition + times.of_sorted[launch] * held

    asked = {"sort_from_rows": "auto", "rows": rows, "multiprocessors": multiprocessors, "beside": True}
    found = auto(**asked, times=times)
    best = min(cost(order, launch) for order in ("as_asked", "partitioned") for launch in MEASURED)
    assert cost(found.order, Launch(*found[1:])) <= CLEARLY_SLOWER * best * (1 + 1e-9)


def test_times_say_nothing_of_rows_in_device_memory():
    fast = dict.fromkeys(MEASURED, 1e-9)
    asked = {**LINK, "table": "device", "sort_from_rows": "auto"}
    assert reading("auto", "auto", "auto", **asked, times=Times(fast, fast, 1e-9)) == ("as_asked", 32, None)


@given(times=TIMES, rows=st.integers(DENSE_ROWS, 2**24), beside=st.booleans())
def test_ids_of_many_of_the_rows_are_never_partitioned_by_auto(times, rows, beside):
    dense = {"sort_from_rows": "auto", "rows": rows, "table_bytes": 40 * 264 * rows, "beside": beside}
    assert "partitioned" not in {auto(**dense).order, auto(**dense, times=times).order}
    for sparse in ({**dense, "table_bytes": 40 * 264 * rows + 1}, {**dense, "rows": DENSE_ROWS - 1}):
        assert "sorted" not in {auto(**sparse).order, auto(**sparse, times=times).order}


@pytest.mark.parametrize(("rows", "order"), [(SORT_FROM_ROWS - 1, "as_asked"), (SORT_FROM_ROWS, "partitioned")])
def test_without_times_the_order_is_as_on_another_machine(rows, order):
    assert auto(sort_from_rows="auto", rows=rows) == auto(sort_from_rows=SORT_FROM_ROWS, rows=rows)
    assert auto(sort_from_rows="auto", rows=rows).order == order


def test_a_launch_that_cannot_be_is_refused():
    for launch, key in [((3, 4, None), "rows_per_program"), ((4, 3, None), "warps"), ((4, 4, 0), "programs")]:
        with pytest.raises(ConfigError, match=rf"^lookup\.{key}="):
            check_launch(*launch)
    with pytest.raises(ConfigError, match=r"^lookup\.stages=0: must be at least 1"):
        check_launch(4, 4, None, 0)


@given(rows=st.integers(1, 2**33), row_bytes=st.integers(1, 2**20))
@example(rows=384_006_168, row_bytes=264)
def test_buckets_are_neither_too_small_nor_too_many(rows, row_bytes):
    shift = bucket_shift(rows, row_bytes)
    assert ((rows - 1) >> shift) + 1 <= MOST_BUCKETS
    assert row_bytes << shift >= BUCKET_BYTES
    fewest = shift == 0 or row_bytes << (shift - 1) < BUCKET_BYTES or ((rows - 1) >> (shift - 1)) + 1 > MOST_BUCKETS
    assert fewest, "no coarser than it must be"


@pytest.mark.parametrize(("rows", "bucket_mb"), [(67_000_000, 4.3), (242_000_000, 8.7), (384_006_168, 17.3)])
def test_buckets_of_real_tables_read_as_fast_as_sorted_rows(rows, bucket_mb):
    assert (264 << bucket_shift(rows, 264)) / 1e6 == pytest.approx(bucket_mb, abs=0.05)


def test_an_unknown_order_is_refused():
    with pytest.raises(ConfigError, match=r"^lookup\.order=random: must be one of as_asked, sorted, partitioned, auto"):
        check_order("random")
