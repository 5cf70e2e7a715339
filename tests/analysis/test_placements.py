"""Advice and comparisons know how many GPUs shared a run, and how rows reached whoever asked for them."""

import json
from dataclasses import asdict

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import ask, rows, steps

from engram_exp import advise
from engram_exp.analysis.advice_in_words import lines_of
from engram_exp.analysis.answers import advise_all
from engram_exp.analysis.compare import ComparisonError, compare_values
from engram_exp.analysis.engines import DECODE, RELEASES, Gpus, settings_for
from engram_exp.analysis.placements import share_on_device, tables_on_host
from engram_exp.layer.shards import BY_ROWS, SPLITS, Shards
from engram_exp.vocabulary import OWN, SAME

TABLE_GB = 2 * 128 * 10**7 / 1e9  # both layers of `demo`, as `made_up.rows` has them


def on(ranks, strategy, table, times, exchange="", batches=SAME, **columns):
    told = {"ranks": ranks, "rank_batches": batches if ranks > 1 else "", "exchange": exchange, "table": table}
    return rows(strategy, times, **told, **columns)


def two(batches=SAME, **columns):
    """Two GPUs: rows of peers win at 64 tokens, and an all-gather at 4,096."""
    return pd.concat(
        [
            on(2, "sharded", "shard", {64: 0.02, 4096: 0.9}, "peer", batches, **columns),
            on(2, "sharded", "shard", {64: 0.04, 4096: 0.4}, "all_gather", batches, **columns),
            on(2, "host_shared", "shared", {64: 0.1, 4096: 4.0}, "", batches, **columns),
            on(2, "replicated", "device", {64: 0.01, 4096: 0.3}, "", batches, **columns),
            on(2, "uva", "huge", {64: 0.1, 4096: 4.1}, "", batches, **columns),
        ]
    )


def test_each_size_of_step_gets_its_placement_and_exchange_within_the_memory_of_each_gpu():
    advice = ask(two(), prefill=4096, device_memory_gb=TABLE_GB / 2)
    assert [one.strategy for one in advice.choices] == ["sharded exchange=peer", "sharded exchange=all_gather"]
    assert advice.choices[0].added_ms_per_step.ms == pytest.approx(2 * (0.02 - 0.01)), "against replicated"
    taken = {one.strategy: (one.device_gb, one.host_gb) for one in advice.placements}
    half = pytest.approx((TABLE_GB / 2, 0))
    assert taken == {
        "host_shared": pytest.approx((0, TABLE_GB)),
        "uva": pytest.approx((0, 2 * TABLE_GB)),
        "sharded exchange=peer": half,
        "sharded exchange=all_gather": half,
        "replicated": pytest.approx((TABLE_GB, 0)),
    }
    assert (advice.gpus, advice.freed_gb) == (Gpus(2, SAME), pytest.approx(TABLE_GB / 2))
    assert ask(two(), prefill=4096).choices[0].strategy == "host_shared", "nothing may lie on the GPUs"


def test_host_memory_holds_a_table_for_each_rank_unless_they_share_it():
    assert {choice.strategy for choice in ask(two(), prefill=4096, host_memory_gb=TABLE_GB).choices} == {"host_shared"}


def test_each_placement_is_told_with_its_memory_times_and_flags():
    lines = lines_of(ask(two(), prefill=4096, device_memory_gb=TABLE_GB / 2))
    assert "of which 1.3 GB need not be in the memory of each GPU" in lines[0]
    assert lines[1] == "  on 2 GPUs; ms a layer, by tokens per step:"
    peer = next(line for line in lines if line.startswith("  sharded exchange=peer: "))
    assert "1.3 GB of each GPU, 0.0 GB of the host; 64: 0.02 (0.0198 to 0.0202); 4,096: 0.9 (" in peer
    assert "SGLang 0.5.23: SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=0 SGLANG_OPT_" in peer
    assert "no engine has flags for it" in next(line for line in lines if line.startswith("  uva: "))
    too_large = [line.split(":")[0].strip() for line in lines if "GB of the host, more than tables may take;" in line]
    assert too_large == ["replicated"]
    own = "\n".join(lines_of(ask(two(OWN), prefill=4096)))
    assert "by tokens of each of the 2 GPUs:" in own
    assert "vLLM 0.33.0: --data-parallel-size 2 --engram-config '{\"cpu_offload\": true}'" in own


def test_a_step_beside_a_decoder_is_held_against_replicated_tables():
    def part(strategy, table, us, exchange=""):
        return steps(strategy, {(64, 1): us}, ranks=2, rank_batches=SAME, exchange=exchange, table=table)

    frame = pd.concat(
        [part("sharded", "shard", 5, "peer"), part("host_shared", "shared", 60), part("replicated", "device", 2)]
    )
    asked = {"decode": 64, "prefill": 4096, "device_memory_gb": 110.0}
    advice = advise(frame, "deepseek_v41_flash", **asked)
    assert advice.steps[0].best == "sharded exchange=peer"
    text = "\n".join(lines_of(advice))
    assert (
        "us that a step takes longer, by tokens per step:\n  host_shared: 0.0 GB of each GPU, 202.8 GB of the" in text
    )
    assert "101.4 GB of each GPU, 0.0 GB of the host; 64 x 1: 5 (4 to 6)" in text
    assert "  replicated, us  how sure\n" in text
    assert "  64      strategy=sharded exchange=peer  5.0 (4.0 to 6.0)  0.05 % (0.04 to 0.06)  2.0 " in text
    assert "\n  frees 101.4 GB of device memory\n" in text


def test_every_number_of_ranks_is_a_subject_of_its_own():
    alone = rows("uva", {64: 0.1, 4096: 4.0}, ranks=1)
    found = advise_all(pd.concat([alone, two()]), decode=64, prefill=4096, device_memory_gb=0)
    assert sorted(one.advice.gpus.number for one in found) == [1, 2]
    labels = {one.advice.gpus.number: one.subject.label for one in found}
    assert "ranks=2, rank_batches=same" in labels[2]
    assert [one.advice.placements for one in found if one.advice.gpus.number == 1] == [[]]
    json.dumps([asdict(one.advice) for one in found])


HOST_TABLES = {"uva": "huge", "host_shared": "shared", "host_per_rank": "shard_host"}
TABLES = "shard", "shard_host", "shared", "device", "huge", "pinned"


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from(TABLES))
def test_all_ranks_together_keep_the_tables_once_at_least_and_once_each_at_most(ranks, nodes, table):
    one = pd.DataFrame([{"ranks": ranks * nodes, "nodes": nodes, "table": table, "split": "strided"}])
    kept = ranks * nodes * share_on_device(one).item() + nodes * tables_on_host(one).item()
    assert kept == pytest.approx({"shard": 1, "shard_host": 1, "shared": nodes}.get(table, ranks * nodes))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.sampled_from(SPLITS))
def test_the_largest_share_of_whole_columns_counts(columns, nodes, ranks, split):
    size = ranks * nodes
    shards = Shards([10] * columns, 10 * columns, size, split)
    shares = [shards.rows_of(rank) / shards.rows for rank in range(size)]
    hosts = [sum(shares[first : first + ranks]) for first in range(0, size, ranks)]
    told = {"ranks": size, "nodes": nodes, "split": split}
    found = [pd.DataFrame([{**told, "table": table}]) for table in ("shard", "shard_host")]
    rounding = size / columns / 10 if split == BY_ROWS else 1e-9
    assert share_on_device(found[0], columns).item() == pytest.approx(max(shares), abs=rounding)
    assert tables_on_host(found[1], columns).item() == pytest.approx(max(hosts), abs=rounding)


def test_flags_of_several_gpus_say_how_many():
    for use in (DECODE, "prefill"):
        for batches, flag in ((SAME, "--tensor-parallel-size 4"), (OWN, "--data-parallel-size 4")):
            for settings in settings_for(use, Gpus(4, batches)).values():
                for one in settings.values():
                    variables, found, _ = one.flags.partition(flag)
                    assert found
                    assert "--" not in variables, "the environment's variables come first"
    names = [(one.strategy, one.batches, one.uses) for release in RELEASES.values() for one in release.settings]
    assert any(batches == OWN for _, batches, _ in names)


def test_ranks_are_compared_each_with_what_it_asks_for():
    def runs(ranks, times, batches=SAME, strategy="uva", threads=8, **columns):
        frames = [
            on(ranks, strategy, "huge", {64: ms}, batches=batches, threads=threads, run_id=f"{ranks} {batches} {n}")
            for n, ms in enumerate(times)
        ]
        return pd.concat(frames).assign(**columns)

    frame = pd.concat([runs(1, [2.0] * 4, threads=16), runs(2, [1.0] * 4), runs(2, [3.0] * 4, OWN)])
    found = {row["rank_batches"]: row for row in compare_values(frame, "ranks", "1", "2").to_dict("records")}
    assert {name: (row["ratio"], row["runs_b"], row["verdict"]) for name, row in found.items()} == {
        "- / same": (0.5, 4, "faster"),
        "- / own": (1.5, 4, "slower"),
    }
    assert found["- / own"]["threads"] == "16 / 8"
    wider = pd.concat([frame, runs(4, [1.5] * 4, OWN, threads=4)])
    (both,) = compare_values(wider, "ranks", "2", "4").to_dict("records")
    assert (both["rank_batches"], both["ratio"]) == ("own", 0.5)
    other = pd.concat([runs(1, [2.0] * 4), runs(2, [1.0] * 4, options="model.hc_mult=1")])
    with pytest.raises(ComparisonError, match="no configuration in common"):
        compare_values(other, "ranks", "1", "2")
    apart = pd.concat([runs(1, [2.0] * 4, strategy="device"), runs(2, [1.0] * 4, strategy="sharded")])
    assert compare_values(apart, "ranks", "1", "2")["strategy"].item() == "device / sharded"
    hosts = pd.concat([runs(2, [2.0] * 4, nodes=1), runs(2, [3.0] * 4, nodes=2, threads=16)])
    assert compare_values(hosts, "nodes", "1", "2")["ratio"].item() == 1.5


def test_a_host_keeps_a_table_for_the_ranks_that_are_on_it():
    frame = pd.concat([on(4, strategy, table, {64: 1.0}, nodes=2) for strategy, table in HOST_TABLES.items()])
    advice = ask(frame, decode=64, prefill=64)
    kept = {one.strategy: one.host_gb / TABLE_GB for one in advice.placements}
    assert kept == pytest.approx({"uva": 2, "host_shared": 1, "host_per_rank": 1 / 2})
    assert lines_of(advice)[1] == "  on 4 GPUs of 2 hosts; ms a layer, by tokens per step:"
