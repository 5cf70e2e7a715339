"""What every step knows of itself: bytes, FLOPs and resources."""

from dataclasses import replace

import pytest
import torch
from asked import tasks_of
from common import demo_geometry
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.config.derived import geometry_of
from engram_exp.errors import MismatchError
from engram_exp.layer.excerpt import by_token
from engram_exp.stage import BuiltStage, Stage, Strategy, kind_of
from engram_exp.steps.fusion.step import history_bytes
from engram_exp.steps.lookup.step import Lookup
from engram_exp.vocabulary import BY_SEQUENCE

TOKENS, ROWS = 64 * 4096, 64 * 4096 * 16
HOST = dict.fromkeys(("table", "hashing", "lookup", "projection"), "host")
DEVICE = dict.fromkeys(HOST, "device")
UVA = {**DEVICE, "table": "host"}


def task(name, places, **changes):
    return next(task for task in tasks_of(places, **changes) if task.load.stage.name == name)


def work(name, places, **changes):
    kind, load = task(name, places, **changes)
    return kind.work(load)


def test_bytes_are_those_that_a_step_reads_and_writes():
    def moved(name, places=HOST, **changes):
        kind, load = task(name, places, tokens=10, sequences=2, **changes)
        return kind.bytes_moved(load)

    assert moved("hashing") == (10 + 2 * 2) * 8 + 10 * 16 * 4
    assert moved("lookup") == 10 * 16 * (4 + 2 * 128)
    assert moved("projection") == 2 * (10 * 1024 + 10 * 5120 + 5120 * 1024 + 5120 + 4096)
    assert moved("up_kv") == 10 * 5120 * 2
    packed = {"geometry": demo_geometry(values_per_scale=32)}
    assert moved("lookup", **packed) == 10 * 16 * (4 + 2 * 66)
    assert moved("widening", **packed) == 10 * 16 * (66 + 64 * 2)
    assert moved("up_embed", {**HOST, "projection": "device"}, **packed) == 10 * 16 * 66
    kind, load = task("up_ids", DEVICE, tokens=64, sequences=64)
    assert kind.bytes_moved(load) == 64 * 3 * 8, "each id of a decode step brings its history"


def test_a_fusion_reads_what_it_needs_once_and_writes_once():
    conv = demo_geometry(conv_kernel=4, conv_dilation=3)
    for geometry, taps in ((demo_geometry(), 0), (conv, 4)):
        kind, load = task("fusion", UVA, tokens=64, sequences=64, geometry=geometry, fuses=True)
        weights = (2 if taps else 1) + taps
        moved = 2 * (64 * 5 + 2 * 64 * 4 + 4 * weights) * 1024 + history_bytes(load)
        assert kind.bytes_moved(load) == moved
        assert kind.work(load) == {"device memory": moved}
        assert kind.flops(load) == (8 + 2 * taps) * 64 * 4 * 1024
        assert kind.keeps(load) == {"device": 64 * 4 * 1024 * 2}


def test_what_a_convolution_reads_of_earlier_steps():
    def read(tokens, sequences, **changes):
        _, load = task("fusion", UVA, tokens=tokens, sequences=sequences, geometry=demo_geometry(**changes), fuses=True)
        return history_bytes(load)

    conv, token_bytes = {"conv_kernel": 4, "conv_dilation": 3}, 1024 * 2 + 4 * 4
    assert read(64, 64, **conv) == 64 * 3 * token_bytes, "3, 6 and 9 tokens back"
    assert read(2 * 2, 2, **conv) == 2 * 6 * token_bytes
    assert read(64 * 4096, 64, **conv) == 64 * 9 * token_bytes
    assert read(64, 64) == 0


def test_the_projection_of_v41_costs_what_is_published(configure):
    geometry = geometry_of(configure("model=deepseek_v41_flash"))
    kind, load = task("projection", DEVICE, tokens=1, sequences=1, geometry=geometry)
    assert kind.flops(load) == pytest.approx(315e6, rel=0.01)


def test_a_convolution_reads_tokens_of_its_own_sequence_alone():
    geometry = demo_geometry(conv_kernel=4, conv_dilation=3)
    kind, load = task("fusion", UVA, tokens=40, sequences=2, geometry=geometry, fuses=True)
    assert kind.reads(load, torch.tensor([19, 25])).tolist() == [10, 13, 16, 19, 25, 25, 22, 25]
    history = torch.arange(2 * 9).view(2, 9)
    hidden = torch.arange(40).view(40, 1, 1)
    brought = hidden, history[..., None], history[..., None].float()
    found, values, scales, is_before = kind.excerpt_of_brought(load, brought, torch.tensor([19, 25]))
    assert found.flatten().tolist() == [10, 13, 16, 19, 25, 25, 22, 25]
    assert is_before.tolist() == [[False] * 4, [True, True, False, False]]
    assert values[1, :2, 0].tolist() == scales[1, :2, 0].tolist() == [9 + 9 - 4, 9 + 9 - 1]


def test_each_step_takes_the_resources_of_where_it_stands():
    flops = 2 * TOKENS * 1024 * 5120
    assert work("projection", HOST)["host GEMM"] == work("projection", DEVICE)["device GEMM"] == flops
    assert work("up_kv", HOST) == {"link": TOKENS * 5120 * 2}
    moved = ROWS * (4 + 0.8 * 128 + 128)
    assert work("lookup", HOST, distinct_rows=0.8) == {
        "host memory": pytest.approx(moved), "host rows": pytest.approx(0.8 * ROWS),
    }  # fmt: skip
    assert work("lookup", DEVICE, distinct_rows=0.8) == {"device memory": pytest.approx(moved)}
    assert work("lookup", UVA, distinct_rows=0.8) == {
        "link rows": pytest.approx(0.8 * ROWS * 128), "link row reads": pytest.approx(0.8 * ROWS),
        "device memory": ROWS * 128,
    }  # fmt: skip


def crossing(**changes):
    return work("lookup", UVA, **changes)["link row reads"]


def test_rows_that_come_again_in_another_batch_may_be_kept_by_the_cache():
    """4 batches of 1,024 rows of 128 bytes each."""
    few = {"tokens": 64, "sequences": 64, "batches": 4}
    assert crossing(**few) == crossing(**few, distinct_in_all=0.5) == 1024, "nothing keeps them"
    assert crossing(**few, distinct_in_all=0.5, cache_bytes=1024 * 128) == 512 - 1024 / 4, "of 2,048 rows, half stay"
    assert crossing(**few, cache_bytes=2048 * 128) == 1024 - 2048 / 4, "half of what they ask for stays"
    assert crossing(**few, distinct_in_all=0.25, cache_bytes=100 * 128) == 1024 - 100, "a batch has more than that"
    assert crossing(**few, cache_bytes=4096 * 128) == 0


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 2**28), st.integers(1, 300))
def test_no_more_rows_cross_the_link_than_are_distinct(distinct, in_all, cache_bytes, batches):
    found = crossing(distinct_rows=distinct, distinct_in_all=in_all, cache_bytes=cache_bytes, batches=batches)
    assert 0 <= found <= distinct * ROWS
    assert found <= crossing(distinct_rows=distinct, distinct_in_all=in_all, batches=batches)


def test_what_a_chunk_leaves_in_a_cache_is_not_charged():
    ids = (TOKENS + 64 * 2) * 8
    assert work("hashing", HOST) == {"host memory": ids + ROWS * 4}
    assert work("hashing", HOST, staged=True) == {"host memory": ids}
    assert work("lookup", DEVICE, staged=True, distinct_rows=0.8) == {"device memory": pytest.approx(0.8 * ROWS * 128)}
    reads = pytest.approx(0.8 * ROWS)
    of_rows = {"link rows": pytest.approx(0.8 * ROWS * 128), "link row reads": reads, "device memory": 0}
    assert work("lookup", UVA, staged=True, distinct_rows=0.8) == of_rows
    streamed, of_chunks = (work("projection", DEVICE, staged=staged)["device memory"] for staged in (False, True))
    assert streamed - of_chunks == ROWS * 128


@given(st.floats(0.01, 1), st.sampled_from([HOST, UVA, DEVICE]), st.booleans())
def test_less_is_never_asked_for_than_could_be_done_by_the_fewest_bytes(distinct, places, staged):
    """Work is a lower bound: never more than all bytes moved."""
    for kind, load in tasks_of(places, distinct_rows=distinct, staged=staged):
        asked = kind.work(load)
        assert sum(amount for resource, amount in asked.items() if "memory" in resource) <= kind.bytes_moved(load)
        assert all(amount >= 0 for amount in asked.values())


def test_rows_are_spread_over_the_table_at_most():
    load = task("lookup", HOST).load
    assert load.spread_bytes == load.geometry.table_bytes
    few = task("lookup", HOST, tokens=64, sequences=64, batches=2, distinct_rows=0.5).load
    assert few.spread_bytes == 64 * 16 * 128
    assert replace(few, distinct_in_all=0.25).spread_bytes == 64 * 16 * 64, "batches share rows"


class Plain:
    """A component that is no `Stage`."""

    def __init__(self, table, max_tokens, columns, placement):
        pass


def test_a_plain_component_is_what_its_step_usually_is():
    kind = kind_of(Plain, Lookup)
    assert issubclass(kind, Plain)
    assert kind.work(task("lookup", HOST).load) == work("lookup", HOST)
    assert kind_of(Lookup, Stage) is Lookup


def test_stages_follow_each_other():
    def plus(number):
        return BuiltStage(task("lookup", HOST).load.stage, Lookup, lambda tensors: (tensors[0] * 10 + number,))

    assert Strategy([plus(1), plus(2)])((torch.tensor(3),)) == (torch.tensor(312),)
    assert Strategy([])((3,)) == (3,)
    assert set(BY_SEQUENCE) == {"token_ids", "row_ids"}


def test_a_result_that_only_a_copy_of_could_be_looked_at_is_refused():
    apart = torch.zeros(4, 3, 2).transpose(0, 1)
    with pytest.raises(MismatchError, match=r"row_ids: strides \(2, 6, 1\) .* return a contiguous tensor"):
        by_token("row_ids", apart, tokens=12)
    assert by_token("row_ids", torch.zeros(3, 4, 2), tokens=12).shape == (12, 2)
