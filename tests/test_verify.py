"""What is compared, and when it differs."""

import pytest
import torch

from engram_exp import verify
from engram_exp.errors import MismatchError


def test_tokens_on_both_sides_of_every_edge_are_compared():
    found = verify.compared_tokens(100_000, 4096, 12_345).tolist()
    assert found == sorted(set(found))
    for edge in (0, 4096, 12_345, 100_000):
        assert set(range(max(0, edge - 32), min(100_000, edge + 32))) <= set(found)
    assert len(found) < 1000


def test_what_is_not_a_number_is_not_close():
    with pytest.raises(MismatchError, match=r"1 of 2 compared vectors differ .*, by up to inf"):
        verify.require_close("keys", torch.tensor([[1.0, torch.nan], [1.0, 1.0]]), torch.ones(2, 2), 0.1)


def test_equal_values_of_another_dtype_are_a_mismatch():
    with pytest.raises(MismatchError, match=r"^hashing: torch.int64 \[3\] instead of torch.int32 \[3\]"):
        verify.require_equal("hashing", torch.arange(3), torch.arange(3, dtype=torch.int32))
