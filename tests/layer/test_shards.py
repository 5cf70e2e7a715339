"""Every row that anybody may ask for lies in one share, and row ids become places in it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.layer.shards import BY_ROWS, CONTIGUOUS, SPLITS, STRIDED, Shards

TABLES = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 7), st.sampled_from(SPLITS)
)


def shards_of(table):
    column_rows, more, size, split = table
    return Shards(column_rows, sum(column_rows) + more, size, split)


def held(shards, share):
    """The rows of a share, in the order in which it stores them."""
    return [row for span in shards.spans_of(share) for row in range(span.first, span.first + span.rows)]


@given(TABLES)
def test_no_row_is_held_twice_and_none_is_missing(table):
    shards = shards_of(table)
    rows = sorted(row for share in range(shards.size) for row in held(shards, share))
    assert rows == list(range(shards.rows if shards.by_rows else sum(shards.column_rows)))
    assert [len(held(shards, share)) for share in range(shards.size)] == list(map(shards.rows_of, range(shards.size)))


@given(TABLES)
def test_shifted_row_ids_are_places_in_a_share(table):
    shards, shifts = shards_of(table), shards_of(table).shifts()
    column_of = np.repeat(np.arange(shards.columns), shards.column_rows)
    for share in range(shards.size):
        columns = range(shards.columns)[shards.columns_of(share)]
        for place, row in enumerate(held(shards, share)):
            if shards.by_rows:
                assert row + shifts[share] == place
            else:
                assert column_of[row] in columns
                assert row + shifts[column_of[row]] == place


@given(TABLES)
def test_columns_are_shared_out_evenly(table):
    shards = shards_of(table)
    numbers = [shards.number_of_columns(share) for share in range(shards.size)]
    assert shards.most_columns == max(numbers)
    if not shards.by_rows:
        assert sum(numbers) == shards.columns
        assert max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize(
    ("split", "columns"),
    [(CONTIGUOUS, [[0, 1, 2], [3, 4], [5, 6]]), (STRIDED, [[0, 3, 6], [1, 4], [2, 5]]), (BY_ROWS, [[*range(7)]] * 3)],
)
def test_who_has_which_columns(split, columns):
    shards = Shards([2] * 7, 14, 3, split)
    assert [list(range(7)[shards.columns_of(share)]) for share in range(3)] == columns
