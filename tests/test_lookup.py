from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.lookup.embedding import EmbeddingLookup
from engram_exp.lookup.gather import GatherLookup
from engram_exp.tables.contents import contents
from engram_exp.tables.host import HostTable

LOOKUPS = [EmbeddingLookup, GatherLookup]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_more_rows_than_one_block():
    table = HostTable(5000, 24, torch.bfloat16, 1, CPU, huge_pages=True)
    row_ids = torch.randint(0, 5000, (3, 500, 4))
    assert torch.equal(GatherLookup(table, 1500, 4, CPU)(row_ids), table.contents(row_ids).reshape(1500, 96))


def golden_table(rows: int, row_values: int) -> SimpleNamespace:
    values = np.sin(0.37 * np.arange(rows * row_values) + 0.37).astype(np.float32)
    return SimpleNamespace(storage=torch.from_numpy(values.reshape(rows, row_values)))


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_golden_embeddings(lookup):
    expected = golden("forward")
    row_ids = torch.from_numpy(expected["rows"])
    table = golden_table(int(expected["primes"].sum()), 8)
    embeddings = lookup(table, row_ids.shape[0] * row_ids.shape[1], row_ids.shape[2], CPU)(row_ids)
    assert np.array_equal(embeddings.numpy(), expected["embeddings"].reshape(48, 128))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    row_values=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    huge=st.booleans(),
    data=st.data(),
)
@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_gathered_row_equals_the_contents(lookup, rows, row_values, dtype, seed, huge, data):
    table = HostTable(rows, row_values, dtype, seed, CPU, huge_pages=huge)
    shape = [data.draw(st.integers(1, 4)) for _ in range(3)]
    generator = torch.Generator().manual_seed(seed)
    row_ids = torch.randint(0, rows, shape, generator=generator, dtype=torch.int32)
    row_ids.view(-1)[[0, -1]] = torch.tensor([0, rows - 1], dtype=torch.int32)
    embeddings = lookup(table, shape[0] * shape[1], shape[2], CPU)(row_ids)
    assert embeddings.shape == (shape[0] * shape[1], shape[2] * row_values)
    assert torch.equal(embeddings, table.contents(row_ids).reshape(embeddings.shape))


def test_contents_are_finite_the_same_in_every_dtype_and_depend_on_row_and_seed():
    row_ids = torch.arange(1000)
    values = [contents(row_ids, 64, dtype, seed=5).float() for dtype in DTYPES]
    assert torch.isfinite(values[0]).all()
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert len(torch.unique(values[0], dim=0)) == 1000
    assert not torch.equal(values[0], contents(row_ids, 64, torch.float32, seed=6))
    assert abs(values[0].mean()) < 0.02


@pytest.mark.parametrize("row_id", [-1, 10])
def test_row_ids_outside_the_table_are_an_error(row_id):
    table = HostTable(10, 4, torch.float32, 0, CPU, huge_pages=False)
    row_ids = torch.tensor([[[0, row_id, 9]]], dtype=torch.int32)
    with pytest.raises(IndexError, match="1 row ids are outside of 0 to 9"):
        GatherLookup(table, 1, 3, CPU)(row_ids)
    with pytest.raises(IndexError):
        EmbeddingLookup(table, 1, 3, CPU)(row_ids)


def test_rows_beyond_32_bits_have_contents():
    assert torch.isfinite(contents(torch.tensor([2**33]), 8, torch.float32, 0)).all()


def test_gather_keeps_its_buffer_and_embedding_does_not():
    table = HostTable(10, 4, torch.float32, 0, CPU, huge_pages=False)
    row_ids = torch.zeros(1, 2, 3, dtype=torch.int32)
    gather = GatherLookup(table, 2, 3, CPU)
    assert gather(row_ids).data_ptr() == gather(row_ids).data_ptr()
    embedding = EmbeddingLookup(table, 2, 3, CPU)
    first = embedding(row_ids)
    assert first.data_ptr() != embedding(row_ids).data_ptr()
