"""The stand-in does the products that it is given, each of what was made before it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU

from engram_exp.decoder.shapes import MatmulShape

SHAPE = MatmulShape(
    layers=3, hidden_size=12, products=[[5, 12], [30, 5], [4, 30], [12, 30]], vocab_size=40, tied=False, norm_eps=1e-6
)


def test_a_layer_is_its_products_added_to_the_hidden_state():
    decoder = SHAPE.build(2, torch.float32, 0, CPU)
    step = decoder.step(2, 3)
    hidden = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    down, up, _unread, last = decoder.layers[1]
    want = hidden + hidden @ down.t() @ up.t() @ last.t()
    torch.testing.assert_close(step.run(1, 2, hidden), want)


def test_a_product_reads_the_first_channels_of_the_last_that_has_as_many():
    assert SHAPE.sources == (0, 1, 2, 2)
    assert replace(SHAPE, products=[[14, 10], [20, 12], [12, 13]]).sources == (0, 1, 2)


@settings(deadline=None)
@given(cut=st.integers(0, 3), tokens=st.integers(1, 4))
def test_a_step_that_is_cut_makes_the_same_and_leaves_what_it_read(cut, tokens):
    step = SHAPE.build(2, torch.float32, 0, CPU).step(2, tokens)
    begun = step.begin(torch.arange(2 * tokens).view(2, tokens))
    before = begun.clone()
    halves = step.run(cut, 3, step.run(0, cut, begun))
    assert torch.equal(halves, step.run(0, 3, begun))
    assert torch.equal(begun, before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_likeliest_token_of_the_last_position_is_chosen(tied):
    decoder = replace(SHAPE, tied=tied).build(2, torch.float32, 0, CPU)
    step = decoder.step(2, 3)
    hidden = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    want = (hidden[[2, 5]] @ decoder.head.t()).argmax(-1)  # the norm of a vector changes no choice
    assert torch.equal(step.end(hidden), want)


def test_hidden_states_stay_of_one_size_through_many_layers():
    shape = replace(SHAPE, layers=40, hidden_size=256, products=[[512, 256], [256, 512]])
    step = shape.build(4, torch.bfloat16, 0, CPU).step(4, 2)
    begun = step.begin(torch.arange(8).view(4, 2))
    growth = step.run(0, 40, begun).float().norm() / begun.float().norm()
    assert 1 < growth < 4
