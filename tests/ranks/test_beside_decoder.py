"""What ranks compute together, a decoder or a projection, is what one would; layers stand in steps of several ranks as
they do in those of one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from common import TINY, demo_geometry
from hypothesis import given
from hypothesis import strategies as st
from pool import pool_of

from engram_exp.decoder.shape import DecoderCost
from engram_exp.decoder.shapes import MatmulShape
from engram_exp.decoder.shared_matmuls import SharedMatmulDecoder
from engram_exp.errors import ConfigError
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.measure.loop import measure
from engram_exp.measure.rank_clock import RankClock
from engram_exp.run import glance, step_bench
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan
from engram_exp.run.ranked import whole_table_bytes
from engram_exp.steps.lookup.anywhere import AnywhereLookup
from engram_exp.steps.projection.column_parallel import ColumnParallelProjection
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.vocabulary import OF_A_STEP

CPU = Placement(torch.device("cpu"))
# Of 12 channels queries and 6 of keys and values, output, a router that nobody shares out, gate and up, down.
PRODUCTS, SPLIT = [[18, 12], [12, 12], [5, 12], [48, 12], [12, 24]], ["made", "read", "whole", "made", "read"]
SIZES = {"layers": 3, "hidden_size": 12, "vocab_size": 41, "tied": False, "norm_eps": 1e-6}
SHAPE = MatmulShape(products=PRODUCTS, split=SPLIT, **SIZES)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with pool_of(2, tmp_path_factory.mktemp("ranks"), "test_beside_decoder", "engram_exp.decoder.dense") as ready:
        yield ready


def through_layers(ranks, tied):
    """The hidden state behind two layers, and what is chosen behind it: of the shares, and of the whole."""
    shape = replace(SHAPE, tied=tied)
    share, hidden = shape.among(ranks.size), torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    found = []
    for decoder in (share.build(2, torch.float32, 0, CPU, ranks), shape.build(2, torch.float32, 0, CPU)):
        step = decoder.step(2, 3)
        state = step.run(1, 3, hidden)
        found.append((state, step.end(state)))
    (state, chosen), (whole, wanted) = found
    torch.testing.assert_close(state, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(chosen, wanted)
    return state


@pytest.mark.slow
def test_the_shares_of_a_decoder_make_what_the_whole_makes_and_the_same_on_all_ranks(pool):
    for tied in (True, False):
        first, second = pool(2, through_layers, tied)
        assert torch.equal(first, second)


def project(ranks):
    """Keys and value of 15 columns, which two ranks do not share evenly, beside those of one that has them all."""
    made = []
    for dtype, bias, norms in (
        (torch.float32, True, True),
        (torch.bfloat16, False, False),
        (torch.bfloat16, True, True),
    ):
        geometry = demo_geometry(hidden_size=5, hc_mult=2, bias=bias, row_values=4, vocab_per_order=(20, 20))
        weights = replace(ProjectionWeights.draw(geometry, dtype, 0), norms_keys=norms)
        embeddings = torch.randn(9, geometry.embedding_width, generator=torch.Generator().manual_seed(1)).to(dtype)
        shared = ColumnParallelProjection(weights.share(ranks.rank, ranks.size), ranks, 12, CPU)
        for tokens in (9, 4):
            got, want = (each(embeddings[:tokens]) for each in (shared, FusedProjection(weights, 12, CPU)))
            tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            made += map(torch.clone, got)
    return made


@pytest.mark.slow
def test_columns_of_a_projection_are_those_of_the_whole_on_all_ranks(pool):
    first, second = pool(2, project)
    assert all(map(torch.equal, first, second))
    assert [len(tensor) for tensor in first[:4]] == [9, 9, 4, 4]


@given(rows=st.integers(1, 40), shares=st.integers(1, 9))
def test_shares_of_weights_are_the_whole_and_zeros_behind_it(rows, shares):
    whole = ProjectionWeights(torch.randn(rows, 3), torch.randn(rows), torch.ones(1, 1), 1e-6)
    parts = [whole.share(number, shares) for number in range(shares)]
    for name in ("weight", "bias"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together[:rows], getattr(whole, name))
        assert not together[rows:].any()
    assert len({part.weight.shape for part in parts}) == 1


@given(ranks=st.integers(1, 6), parts=st.tuples(*[st.integers(1, 4)] * 3))
def test_all_shares_together_cost_what_the_whole_costs(ranks, parts):
    queries, more, inner = (ranks * part for part in parts)
    products = [[queries + more, 12], [12, queries], [5, 12], [2 * inner, 12], [12, inner]]
    whole = MatmulShape(products=products, split=SPLIT, **{**SIZES, "vocab_size": 10 * ranks})
    share = whole.among(ranks)
    router = 5 * 12
    assert ranks * (share.product_values - router) == whole.product_values - router
    assert ranks * share.output_rows == whole.output_rows
    assert share.arriving_values == pytest.approx(2 * (1 - 1 / ranks) * 2 * 12), "two sums in a layer"
    sums = 3 * 4 * 7 * 2 * share.arriving_values
    assert DecoderCost(share, 4, 2).arriving_bytes(7) == pytest.approx(sums)
    assert DecoderCost(whole, 4, 2).arriving_bytes(7) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_share_keeps_what_it_is_said_to_cost_while_its_products_are_drawn(monkeypatch, tied):
    of_head, draw = [], SharedMatmulDecoder.product

    def product(decoder, number):
        of_head.append(0 if tied else decoder.head.untyped_storage().nbytes())
        return draw(decoder, number)

    monkeypatch.setattr(SharedMatmulDecoder, "product", product)
    share = replace(SHAPE, tied=tied).among(2)
    decoder = share.build(2, torch.float32, 0, CPU, SimpleNamespace(rank=1, size=2, compute_group=None))
    rest = decoder.embedding.nbytes + decoder.norm.nbytes
    assert {rest + head for head in of_head} == {DecoderCost(share, 2, 4).vocabulary_bytes}


UNLIKE = {"products": [[24, 12], [8, 16], [12, 12]], "split": ["made", "read", "read"]}


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (2, {"split": None}, "decoder.split=null: how ranks share the products out is not told"),
        (2, {"split": ["made"]}, "decoder.split=['made']: must be made, read or whole for each of 5 products"),
        (2, {"split": [*SPLIT[:4], "made"]}, "decoder.split=.*the last makes the hidden state"),
        (2, {"split": ["whole", "read", *SPLIT[2:]]}, "decoder.split=.*product 2 reads what is not shared out"),
        (4, {}, r"ranks=4: 12 and 6 channels of product 1, \[18, 12\], are not evenly shared out; ranks=1,2,3,6 would"),
        (2, {"split": ["made", "whole", *SPLIT[2:]]}, "decoder.split=.*product 2 reads what is shared out"),
        (2, {"split": ["made", "made", *SPLIT[2:]]}, "ranks=2: product 2 reads 12 channels, of which a rank has 9"),
        (2, UNLIKE, r"decoder.split=.*read shares of product 1 must read the same channels, not \[12, 16\]"),
        (7, {"vocab_size": 6}, "ranks=7: of 6 tokens not every rank has one"),
    ],
)
def test_a_decoder_that_cannot_be_shared_out_is_refused(ranks, changes, message):
    with pytest.raises(ConfigError, match=message.replace("['made']", r"\['made'\]")):
        replace(SHAPE, **changes).among(ranks)


STEP = (
    *TINY, "ranks=2", "model.layers=[1,2]", "decoder.layers=3", "steps_per_sample=2", "fusion=gated_conv",
    "batches=2", "cases=[fetch,decoder,ready,step]",
)  # fmt: skip
SHARED = (
    "decoder=matmuls", "decoder.hidden_size=16", "decoder.products=[[24,16],[16,16],[40,16],[16,20]]",
    "decoder.vocab_size=51",
)  # fmt: skip
EACH = "decoder=tiny", "rank_batches=own"
WAYS = {
    "shared": (
        "strategy=sharded",
        "exchange=all_gather",
        "seq_len=1",
        "tokens.history=true",
        "projection=column_parallel",
        *SHARED,
    ),
    "ahead": ("strategy=sharded", "exchange=all_to_all", "prefetch.lead=previous_step", *EACH),
    "inline": ("strategy=host_per_rank", "exchange=peer", "prefetch.where=inline", "dtype=fp8", *EACH),
}


class WrongLookup(AnywhereLookup):
    """Wrong on the second rank, and only there."""

    def __call__(self, row_ids):
        rows = super().__call__(row_ids)
        return rows.add_(1) if torch.distributed.get_rank() == 1 else rows


def step_of(ranks, config):
    """A run's step as `Experiment` goes through it: what is wrong, by case; the samples; bytes of tables, kept here and
    whole."""
    glance.BURST_CALLS = step_bench.WINDOWS = 2  # sums take milliseconds on CPUs that others use
    plan = Plan(config, {}, ranks)
    clock = RankClock(plan.device, ranks)
    with torch.inference_mode():
        bench = step_bench.StepBench(Parts(plan), plan.step, clock, seed=0)
        bench.build()
        cases = [bench.timed(case) for case in bench.cases if case not in bench.errors]
        asked = {"iterations": 2, "budget_s": 10.0, "seed": 0, "progress": lambda case, timings: None}
        timings = measure(cases, clock, **asked)
        bench.look_again()
        bench.verify_again()
    samples = {case: [sample.wall_ms for sample in timing.samples] for case, timing in timings.items()}
    errors = {**bench.errors, **{case: timing.error for case, timing in timings.items() if timing.error}}
    return (
        {case: str(error) for case, error in errors.items()},
        samples,
        (plan.footprint().table_bytes, whole_table_bytes(plan)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_layers_stand_in_a_step_of_several_ranks(pool, configure, way):
    first, second = pool(2, step_of, configure(*STEP, *WAYS[way]))
    assert (first[0], second[0]) == ({}, {})
    assert first[1] == second[1], "a sample is that of all ranks"
    assert set(first[1]) == set(OF_A_STEP)
    kept, whole = zip(first[2], second[2], strict=True)
    assert whole == (sum(kept),) * 2, "two layers"


@pytest.mark.slow
def test_a_wrong_rank_fails_the_step_on_all_ranks_and_leaves_the_decoder(pool, configure):
    config = configure(*STEP, *WAYS["shared"], "lookup._target_=test_beside_decoder.WrongLookup")
    for errors, samples, _ in pool(2, step_of, config):
        assert set(samples) == {"decoder", "ready"} - set(errors)
        assert "decoder" not in errors
        assert "compared values differ" in errors["fetch"]
        assert set(errors) >= {"fetch", "step"}
