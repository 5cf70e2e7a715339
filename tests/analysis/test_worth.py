"""What a GB of device memory for rows is worth: only what was measured, by the intervals, and within a budget."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from made_up import ask, rows, steps

from engram_exp import advise
from engram_exp.__main__ import main
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.worth import RowMemory, layers_of
from engram_exp.results.schema import SCHEMA_VERSION

FILES = SimpleNamespace(
    kept_of=lambda *_: (131072, 1024), tables_of=lambda _: None, columns_of=lambda *_: None, brought_by=lambda _: {}
)
CACHED = {1.0: (0.1, 0.6), 2.0: (0.08, 0.7), 4.0: (0.0795, 0.71)}  # GB: ms, hit rate


def cached(gb, ms, hit_rate, **columns):
    told = {"lookup": "cached", "cache_gb": gb, "cache_policy": "lru", "cache_state": "warm", "cache_ways": 16}
    return rows("cached", {64: ms}, **{**told, "cache_hit_rate": hit_rate, **columns})


def campaign(sizes=CACHED, **columns):
    plain = rows("uva", {64: 0.2}, lookup="triton_link", cache_gb=float("nan"), cache_hit_rate=float("nan"))
    return pd.concat([plain, *(cached(gb, *told, **columns) for gb, told in sizes.items())])


def test_it_pays_from_the_least_that_is_clearly_faster_and_is_enough_where_more_is_not():
    (worth,) = ask(campaign()).worth
    assert (worth.batch_size, worth.seq_len, worth.strategy, worth.policy) == (64, 1, "cached", "lru")
    assert worth.without.ms == 0.2
    assert [(size.gb, size.hit_rate, size.time.ms) for size in worth.sizes] == [
        (gb, hit_rate, ms) for gb, (ms, hit_rate) in CACHED.items()
    ]
    assert (worth.pays_from_gb, worth.enough_gb) == (1.0, 2.0), "4 GB are faster, but not clearly"
    assert worth.saved_ms_per_gb == pytest.approx((0.2 - 0.08) / 2)
    assert worth.tokens_per_gb is None
    line = next(line for line in lines_of(ask(campaign())) if line.startswith("device memory for rows"))
    assert line == (
        "device memory for rows, cached lru, 64 tokens (64 x 1): uva 0.2 ms; 1 GB 0.1 ms (60 % hit); 2 GB 0.08 ms "
        "(70 % hit); 4 GB 0.0795 ms (71 % hit). It pays back from 1 GB on, and more than 2 GB saves nothing clear: "
        "0.06 ms a step for each GB"
    )


def test_what_had_been_seen_is_told_apart_from_what_is_new():
    new = pd.concat([campaign(cache_state="steady"), *(cached(gb, 0.01, 1.0) for gb in CACHED)])
    (worth,) = ask(new).worth
    assert [size.hit_rate for size in worth.sizes] == [0.6, 0.7, 0.71], "not those that had been seen"
    note = "warm caches had seen the very batches that were timed; lookup.state=steady times others"
    assert note in ask(new, device_memory_gb=9).notes
    assert note not in ask(campaign(cache_state="steady"), device_memory_gb=9).notes


def test_what_is_not_clearly_faster_does_not_pay():
    (worth,) = ask(campaign({1.0: (0.199, 0.0)})).worth
    assert (worth.pays_from_gb, worth.enough_gb, worth.saved_ms_per_gb) == (None, None, None)
    assert any(line.endswith("None of it clearly pays back") for line in lines_of(ask(campaign({1.0: (0.199, 0.0)}))))


def test_nothing_is_said_without_anything_to_hold_it_against():
    assert ask(campaign()[lambda frame: frame["strategy"] == "cached"], device_memory_gb=9).worth == []
    assert ask(campaign(cache_state="cold")).worth == [], "a cold cache says nothing of a server's"
    other = cached(1.0, 0.1, 0.6, seq_len=8)
    assert [worth.seq_len for worth in ask(pd.concat([campaign(), other])).worth] == [1]


def test_caches_count_against_the_budget():
    """Made-up tables of 1.28 GB a layer, two layers."""
    assert ask(campaign()).choices[0].strategy == "uva", "no cache fits into nothing"
    two = ask(campaign(), device_memory_gb=5)
    assert (two.choices[0].strategy, two.choices[0].ms_per_layer.ms) == ("cached", 0.08), "4 GB a layer do not fit"
    assert len(two.worth[0].sizes) == 3, "what does not fit says what it would be worth"
    small = ask(campaign({0.1: (0.1, 0.5)}), device_memory_gb=1)
    assert small.choices[0].strategy == "cached"
    assert ask(campaign({0.1: (0.1, 0.5)}), decode=64, prefill=64, device_memory_gb=1).freed_gb == pytest.approx(2.36)


def test_in_a_step_all_layers_count_and_a_gb_could_hold_keys_and_values(tmp_path, capsys):
    told = {"lookup": "cached", "cache_policy": "lru", "cache_state": "warm", "cache_hit_rate": 0.7}
    frame = pd.concat(
        [
            steps("uva", {(64, 1): 90.0}, cache_gb=float("nan")),
            steps("cached", {(64, 1): 30.0}, cache_gb=2.0, **told),
        ]
    )
    advice = advise(frame, "deepseek_v41_flash", decode=64, prefill=64, device_memory_gb=4.0, files=FILES)
    (worth,) = advice.worth
    assert [(size.gb, size.hit_rate) for size in worth.sizes] == [(4.0, 0.7)], "of both layers"
    assert worth.sizes[0] == RowMemory(4.0, 0.7, worth.sizes[0].time)
    assert worth.saved_ms_per_gb == pytest.approx(0.06 / 4)
    assert worth.tokens_per_gb == 1e9 // 131072
    assert advice.steps[0].best == "cached"
    assert advice.steps[0].of("cached").freed_gb == pytest.approx(advice.table_gb - 4.0)
    assert "which as key-value cache would hold 7,629 tokens" in "\n".join(lines_of(advice))


def test_layers_with_strategies_of_their_own_have_no_such_cache():
    told = {"lookup": "cached", "cache_policy": "lru", "cache_state": "warm", "cache_hit_rate": 0.7, "cache_gb": 2.0}
    frame = pd.concat([campaign(), rows("cached strategies.14=uva", {64: 0.1}, **told)])
    assert layers_of(frame, 2).groupby(frame["strategy"]).first().to_dict() == {
        "cached": 2, "cached strategies.14=uva": 1, "uva": 2,
    }  # fmt: skip


def test_programs_get_it_too(tmp_path, capsys, monkeypatch):
    runs = campaign().assign(schema_version=SCHEMA_VERSION, run_id=list("abcd"))
    runs.to_csv(tmp_path / "results.csv", index=False)
    monkeypatch.setattr("sys.argv", ["engram_exp", "advise", str(tmp_path), "--json"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["worth"][0]["pays_from_gb"] == 1.0
