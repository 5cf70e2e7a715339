"""fp8 rows become what PyTorch's own conversions make of them, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, KERNEL_DEVICE

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.widening import build_widening
from engram_exp.steps.widening.numba import NumbaWidening
from engram_exp.steps.widening.triton import TritonWidening

INTERPRETED = KERNEL_DEVICE.type == "cpu"  # Triton's interpreter misrounds subnormal bfloat16; a GPU must not
WIDENINGS = [NumbaWidening, TritonWidening]


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    """To the last bit, but for the payload of NaN."""
    assert got.dtype == want.dtype
    return np.array_equal(got.float().numpy(), want.float().numpy(), equal_nan=True)


def widen(widening, row_format, stored, columns):
    """By a component, whole and, where there are scales, in two parts, which must give the same."""
    placement = CPU if widening is NumbaWidening else Placement(KERNEL_DEVICE)
    tokens = len(stored) // columns
    component = widening(row_format, tokens + 1, columns, placement)
    parts = stored.split([row_format.values, row_format.scales], dim=1)
    whole, *apart = (
        component(*(part.contiguous().view(tokens, -1).to(placement.device) for part in pieces)).cpu().clone()
        for pieces in ([stored], *([parts] if row_format.scales else []))
    )
    assert all(equal(one, whole) for one in apart)
    return whole.view(len(stored), -1)


@pytest.mark.parametrize("widening", WIDENINGS)
def test_every_value_with_every_scale(widening):
    row_format = RowFormat(256, torch.bfloat16, values_per_scale=256)
    first = 10 if widening is TritonWidening and INTERPRETED else 0
    scales = torch.arange(first, 256, dtype=torch.uint8)[:, None]
    stored = torch.cat([torch.arange(256, dtype=torch.uint8).expand(len(scales), 256), scales], dim=1)
    assert equal(widen(widening, row_format, stored, 1), row_format.widen(stored))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    values=st.integers(1, 300),
    values_per_scale=st.sampled_from([1, 7, 32]),
    columns=st.integers(1, 5),
    tokens=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("widening", WIDENINGS)
def test_rows_of_any_size(widening, values, values_per_scale, columns, tokens, seed):
    row_format = RowFormat(values, torch.bfloat16, values_per_scale)
    stored = row_format.contents(torch.arange(tokens * columns), seed)
    assert equal(widen(widening, row_format, stored, columns), row_format.widen(stored))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_compute_dtype(dtype):
    row_format = RowFormat(64, dtype, values_per_scale=32)
    stored = row_format.contents(torch.arange(12), seed=1)
    for device in {CPU.device, KERNEL_DEVICE}:
        widening = build_widening(row_format, 4, 3, Placement(device))
        for pieces in ([stored], stored.split([64, 2], dim=1)):
            widened = widening(*(part.contiguous().view(4, -1).to(device) for part in pieces))
            assert equal(widened.cpu().view(12, -1), row_format.widen(stored))


@pytest.mark.parametrize("widening", WIDENINGS)
def test_rows_wider_than_a_block(widening):
    row_format = RowFormat(1100, torch.bfloat16, values_per_scale=32)
    stored = row_format.contents(torch.arange(6), seed=1)
    assert equal(widen(widening, row_format, stored, 3), row_format.widen(stored))


ANY_SCALE = st.floats(2.0**-100, 2.0**100)
FOUR_BITS = st.builds(lambda bits, exponent: bits * 2.0**exponent, st.integers(8, 15), st.integers(-100, 100))
# Triton's interpreter cuts bits off where a GPU rounds: there, products that bfloat16 holds, of four bits and four.
SCALES = {NumbaWidening: ANY_SCALE, TritonWidening: FOUR_BITS if INTERPRETED else ANY_SCALE}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(data=st.data(), values=st.integers(1, 300), columns=st.integers(1, 3))
@pytest.mark.parametrize("widening", WIDENINGS)
def test_one_scale_for_the_whole_table(widening, data, values, columns):
    """Of every byte there is, NaN included."""
    row_format = RowFormat(values, torch.bfloat16, one_scale=data.draw(SCALES[widening]))
    rows = -(-256 // values) * columns
    stored = torch.arange(rows * values).to(torch.uint8).view(rows, values)
    assert equal(widen(widening, row_format, stored, columns), row_format.widen(stored))


@given(ANY_SCALE)
def test_the_reference_rounds_the_product_with_the_one_scale(one_scale):
    row_format = RowFormat(256, torch.bfloat16, one_scale=one_scale)
    assert (row_format.width, row_format.scales, row_format.part_widths) == (256, 0, (256,))
    stored = torch.arange(256, dtype=torch.uint8)
    exact = stored.view(torch.float8_e4m3fn).double() * one_scale
    widened = row_format.widen(stored).double()
    assert torch.allclose(widened, exact, rtol=1.01 * 2**-8, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_scale_in_every_compute_dtype(dtype):
    row_format = RowFormat(160, dtype, one_scale=0.75)
    stored = row_format.contents(torch.arange(12), seed=1)
    for device in {CPU.device, KERNEL_DEVICE}:
        widened = build_widening(row_format, 4, 3, Placement(device))(stored.view(4, -1).to(device))
        assert equal(widened.cpu().view(12, -1), row_format.widen(stored))
