"""How rows are read: the order, and the launch that goes with it. Nothing here needs PyTorch."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engram_exp.errors import ConfigError
from engram_exp.steps.lookup.order import (
    BUCKET_BYTES,
    MOST_BUCKETS,
    bucket_shift,
    check_launch,
    check_order,
    reading,
)

GB = 10**9
LINK = {"sort_from_rows": 16384, "rows": 10**6, "table": "host", "table_bytes": 64 * GB}


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
    programs=st.sampled_from([None, 1, 7, 528, "multiprocessors"]), multiprocessors=st.integers(1, 200),
)  # fmt: skip
def test_what_is_typed_wins_and_what_is_not_can_be_launched(
    order, rows, table, table_bytes, rows_per_program, programs, multiprocessors
):
    asked = {**LINK, "rows": rows, "table": table, "table_bytes": table_bytes, "multiprocessors": multiprocessors}
    typed = reading(order, 2**rows_per_program, programs, **asked)
    assert typed[1:] == (2**rows_per_program, multiprocessors if programs == "multiprocessors" else programs)
    found = reading(order, "auto", "auto", **asked)
    assert found.order == typed.order == (order if order != "auto" else found.order) != "auto"
    check_order(found.order)
    check_launch(found.rows_per_program, 4, found.programs)


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
