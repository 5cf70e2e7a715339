"""What tables take of device and host memory at full size, and what is freed of it."""

import pandas as pd
import pytest
from made_up import advice, steps, text

from engram_exp.analysis.memory import memory_of, rounded_up_gb
from engram_exp.config import decoders

V41_GB = 2 * 264 * 384_006_168 / 1e9


@pytest.mark.slow
def test_memory_is_as_measured_where_whole_tables_were_on_both_sides():
    def freed(device, host, **columns):
        frames = (
            steps("device", {(64, 1): 1}, peak_device_bytes=device),
            steps("uva", {(64, 1): 50}, peak_device_bytes=host, **columns),
        )
        (step,) = advice(*(frame.assign(**columns) for frame in frames)).steps
        return {one.strategy: one.freed_gb for one in step.strategies}

    assert freed(250e9, 48e9) == {"device": 0.0, "uva": 202.0}
    assert freed(0, 0) == {"device": 0.0, "uva": pytest.approx(V41_GB)}, "unknown"
    assert freed(30e9, 28e9, table_scale=0.01)["uva"] == pytest.approx(V41_GB), "of the model, not of what was shrunk"


def test_a_budget_lets_the_tables_onto_the_device():
    frames = steps("uva", {(64, 1): 50}), steps("device", {(64, 1): 2})
    assert (advice(*frames).steps[0].best, advice(*frames).freed_gb) == ("uva", pytest.approx(V41_GB))
    rich = advice(*frames, device_memory_gb=210)
    assert (rich.steps[0].best, rich.freed_gb, rich.steps[0].of("device").cached_tokens) == ("device", 0.0, None)


@pytest.mark.parametrize(
    ("strategy", "columns", "device_tables", "host_tables"),
    [
        ("device strategies.14=uva", {"table": "device"}, 1, 1),
        ("uva strategies.1=device", {"table": "huge"}, 1, 1),
        ("uva strategies.1=device strategies.14=device", {"table": "huge"}, 2, 0),
        ("uva strategies.14=kv_on_gpu", {"table": "huge"}, 0, 2),
        ("uva strategies.14=disk", {"table": "huge", "page_cache": "cold"}, 0, 1),
        ("disk strategies.1=uva", {"table": "file", "page_cache": "cold"}, 0, 1),
        ("disk", {"table": "file", "page_cache": "cold"}, 0, 0),
        ("disk cache_state=warm", {"table": "file", "page_cache": "warm"}, 0, 0),
    ],
)
def test_layers_with_strategies_of_their_own_keep_their_tables_apart(strategy, columns, device_tables, host_tables):
    tables_gb, kept = memory_of(steps(strategy, {(64, 1): 50}, runs=1, **columns), 2, decoders)
    assert tables_gb == pytest.approx(V41_GB)
    assert kept[strategy] == (pytest.approx(device_tables * V41_GB / 2), pytest.approx(host_tables * V41_GB / 2))


def test_a_cache_of_one_layer_counts_once():
    mixed = steps("uva strategies.1=cached", {(64, 1): 50}, runs=1)
    own = steps("cached strategies.14=uva", {(64, 1): 50}, runs=1, cache_gb=8.0)
    kept = memory_of(pd.concat([mixed, own]), 2, decoders)[1]
    assert {name: memory.device_gb for name, memory in kept.items()} == {
        "uva strategies.1=cached": 4.0, "cached strategies.14=uva": 8.0
    }  # fmt: skip


def test_the_first_layer_in_device_memory_and_the_second_offloaded():
    frames = steps("device strategies.14=uva", {(64, 1): 3}, table="device"), steps("uva", {(64, 1): 90})
    poor, rich = advice(*frames, device_memory_gb=100), advice(*frames, device_memory_gb=102)
    assert (poor.steps[0].best, poor.freed_gb) == ("uva", pytest.approx(V41_GB))
    assert (rich.steps[0].best, rich.freed_gb) == ("device strategies.14=uva", pytest.approx(V41_GB / 2))
    assert rich.steps[0].of("device strategies.14=uva").freed_gb == pytest.approx(V41_GB / 2)


def test_keys_and_values_that_fit_into_what_is_freed():
    (step,) = advice(steps("uva", {(64, 1): 50})).steps
    one = step.strategies[0]
    assert (one.cached_tokens, one.cached_sequences) == (1_375_022, 1_342)
    (step,) = advice(steps("uva", {(64, 1): 50}, options="decoder.context=4096")).steps
    assert step.strategies[0].cached_sequences == 335
    (step,) = advice(steps("uva", {(64, 1): 50}, decoder="matmuls")).steps
    assert (step.strategies[0].cached_tokens, step.strategies[0].cached_sequences) == (None, None)


@pytest.mark.parametrize(
    ("columns", "gib"),
    [
        ({}, 264),  # as engines take it for V4.1: 128 + 4 for each of two layers
        ({"layout": "", "row_bytes": 264}, 256),
        ({"layout": "split", "row_bytes": 160}, 128),
        ({"true_rows": 2**20, "row_bytes": 1024, "layout": ""}, 2),  # a power of two already
        ({"true_rows": 2**20 + 1, "row_bytes": 1024, "layout": ""}, 4),
    ],
)
def test_an_allocator_that_rounds_up(columns, gib):
    assert rounded_up_gb(steps("uva", {(64, 1): 50}, runs=1, **columns), 2) == gib * 2**30 / 1e9


def test_tables_are_counted_by_the_decoder():
    assert advice(steps("uva", {(64, 1): 50}, engram_layers="3", layers=2)).layers == 1
    assert advice(steps("uva", {(64, 1): 50}, layers=1)).table_gb == pytest.approx(V41_GB)


def test_what_a_card_cannot_hold_is_not_freed_there():
    """Tables of 202.8 GB: a card of 80 GB would not run without the offload, and has no more room for it."""
    card = {"device_name": "NVIDIA H100 80GB HBM3"}
    frames = steps("uva", {(64, 1): 34.1}, **card), steps("device", {(64, 1): -2}, **card)
    found = advice(*frames)
    uva = found.steps[0].of("uva")
    assert (found.freed_gb, uva.kept_gb, uva.freed_gb, uva.cached_tokens) == (None, 0.0, None, None)
    told = text(*frames)
    assert "2 layers with 202.8 GB of tables, which do not fit device memory (85.9 GB at most); they take" in told
    assert "\n  keeps 0.0 GB of the tables in device memory, where they do not fit as a whole\n" in told
    assert "frees" not in told
    assert "more sequences" not in told
    cached = text(*frames, steps("cached", {(16, 1): 3}, cache_gb=4.0, **card), device_memory_gb=8)
    assert "do not fit as a whole: 8.0 GB with cached, 0.0 GB with uva" in cached
