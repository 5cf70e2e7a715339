"""A run whose lookup keeps rows: warm or cold on purpose, counted, verified behind the last sample, or refused."""

from functools import partial

import numpy as np
import pytest
import torch
from common import TINY
from in_step import DECODE, PROMPT, bench_of, statuses
from places import DEVICES, parts_of

from engram_exp.errors import ConfigError
from engram_exp.layer.profile import write_profile
from engram_exp.run.bench import Bench
from engram_exp.run.plan import Plan
from engram_exp.run.requirements import check_plan
from engram_exp.run.row_cache import SteadyAgain, counting_of, require_kept
from engram_exp.steps.lookup.cached import CachedLookup

pytestmark = pytest.mark.usefixtures("few_looks")
CACHED = ("strategy=cached", "capture=none", "lookup.gb=0.001", "lookup.profile_tokens=100", "cases=[lookup,full]")


@pytest.mark.parametrize(
    ("overrides", "least", "most"),
    [
        ([], 1.0, 1.0),
        (["lookup.state=cold"], 0.0, 0.0),
        (["lookup.policy=lfu"], 1.0, 1.0),
        (["dtype=fp8", "lookup.gb=0.000001", "lookup.ways=1", "lookup.policy=static"], 0.01, 0.99),
        (["lookup.policy=static", "lookup.profile_tokens=10000", "tokens.share=0.0001"], 0.5, 1.0),
    ],
)
def test_a_row_says_what_hit_and_how_the_cache_was_found(run_inline, overrides, least, most):
    rows = run_inline(*CACHED, "batches=2", "seq_len=6", *overrides)
    assert {row["status"] for row in rows} == {"ok"}, rows
    for row in rows:
        assert least <= row["cache_hit_rate"] <= most
        assert row["cache_state"] == ("cold" if "lookup.state=cold" in overrides else "warm")
        policy = next((each for each in overrides if each.startswith("lookup.policy=")), "lookup.policy=lru")
        assert row["cache_policy"] == policy.removeprefix("lookup.policy=")


@pytest.mark.parametrize("strategy", ["cached", "cached_copy"])
def test_a_row_that_misses_twice_in_a_call_crosses_twice_unless_it_is_copied(run_inline, strategy):
    cold = "lookup.state=cold", "tokens.share=0.01", "batches=1", "cases=[lookup]"
    (row,) = run_inline(*CACHED, f"strategy={strategy}", *cold)
    asked = row["batch_size"] * row["seq_len"] * 4 * 8 * 2  # 2 orders of 2 heads, 8 values in bfloat16
    crossing = asked if strategy == "cached" else row["unique_row_fraction"] * asked
    assert row["unique_row_fraction"] < 0.9
    assert (row["status"], row["cache_hit_rate"], row["link_bytes"]) == ("ok", 0, pytest.approx(crossing))


@pytest.mark.slow
@pytest.mark.parametrize("graph_calls", [0, 2])
def test_in_its_steady_state_a_cache_is_asked_for_batches_that_it_has_not_seen(
    run_inline, launched, tmp_path, graph_calls
):
    """A trace of 8 steps, of which the last 4 are timed, again and again; 4,096 rows a column, so that few are met by
    chance."""
    random = np.random.default_rng(0)
    again, new = random.integers(0, 50, (2, 4, 2, 6))
    steady = "seq_len=6", "batches=8", "cases=[lookup]", "lookup.state=steady", "budget_s=20"
    large = "model.vocab_per_order=[4096,4096]", *steady
    rates = {}
    for name, timed in (("again", again[:, ::-1]), ("new", new + 50)):
        np.save(tmp_path / f"{name}.npy", np.concatenate([again, timed]))
        trace = "tokens=trace", f"tokens.path={tmp_path / f'{name}.npy'}", "tokens.history=false"
        (row,) = run_inline(*CACHED, *large, *trace, "iterations=6", f"graph_calls={graph_calls}")
        assert (row["status"], row["cache_state"], row["graph_calls"]) == ("ok", "steady", graph_calls), row
        rates[name] = row["cache_hit_rate"]
    assert rates["again"] == 1.0
    assert rates["new"] < 0.5
    (row,) = run_inline(*CACHED, *large, *trace, "lookup.state=warm")
    assert row["cache_hit_rate"] == 1.0


def test_in_its_steady_state_a_step_is_asked_for_batches_that_caches_have_not_seen(run_inline, tmp_path):
    """A trace of 8 steps, the second half of which repeats the first, or does not; two steps a sample."""
    again, new = np.random.default_rng(0).integers(0, 50, (2, 4, 2, 1))
    large = "model.vocab_per_order=[4096,4096]", "batches=8", "steps_per_sample=2", "iterations=3", "cases=[ready,step]"
    rates = {}
    for name, timed in (("again", again[:, ::-1]), ("new", new + 50)):
        np.save(tmp_path / f"{name}.npy", np.concatenate([again, timed]))
        trace = "tokens=trace", f"tokens.path={tmp_path / f'{name}.npy'}", "tokens.history=false"
        rows = run_inline(*CACHED, *DECODE, *large, *trace, "lookup.state=steady")
        assert statuses(rows) == {"ready": "ok", "step": "ok"}, rows
        (rates[name],) = (row["cache_hit_rate"] for row in rows if row["case"] == "step")
    assert rates["again"] == 1.0
    assert rates["new"] < 0.5


def test_before_a_batch_comes_again_a_steady_cache_is_put_back():
    done = []
    again = SteadyAgain(lambda: done.append("put back"))
    calls = {name: partial(tuple, ()) for name in "abc"}
    for name in "cbaabcab":
        again(calls[name])
        done.append(name)
    assert done == ["c", "b", "a", "put back", "a", "b", "c", "put back", "a", "b"]


def test_what_hits_in_calls_that_are_not_timed_is_not_counted(run_inline, monkeypatch):
    def empty_it_first(self, original=Bench.look_again):
        counting_of(self.built.stages.values()).reset()
        original(self)

    monkeypatch.setattr(Bench, "look_again", empty_it_first)
    (row,) = run_inline(*CACHED, "cases=[lookup]", "batches=1")
    assert row["cache_hit_rate"] == 1.0


def test_a_damaged_line_that_no_call_reads_again_is_a_mismatch(run_inline, monkeypatch):
    def flip_a_bit_first(case, lookup, table):
        kept = int((lookup.cache.tags.flatten() >= 0).nonzero()[0])
        lookup.cache.lines.view(torch.uint8)[kept, 0] ^= 1
        require_kept(case, lookup, table)

    monkeypatch.setattr("engram_exp.run.bench.require_kept", flip_a_bit_first)
    rows = {row["case"]: row for row in run_inline(*CACHED, "cases=[hashing,lookup,full]")}
    assert {case: row["status"] for case, row in rows.items()} == {
        "hashing": "ok", "lookup": "mismatch", "full": "mismatch",
    }  # fmt: skip
    assert "rows in the cache differ from the table" in rows["full"]["error"]


def test_what_is_wrong_only_where_all_rows_hit_is_a_mismatch(run_inline, monkeypatch):
    timed = []

    def wrong_hits(self, row_ids, original=CachedLookup.__call__):
        before = int(self.counts[0])
        rows = original(self, row_ids)
        if timed and int(self.counts[0]) - before == row_ids.numel():
            rows[5] += 1
        return rows

    monkeypatch.setattr(CachedLookup, "__call__", wrong_hits)
    look_again = Bench.look_again
    monkeypatch.setattr(Bench, "look_again", lambda self: (look_again(self), timed.append(True)))
    rows = {row["case"]: row for row in run_inline(*CACHED)}
    assert {row["status"] for row in rows.values()} == {"mismatch"}
    assert rows["lookup"]["error"].startswith("lookup: 32 of ")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lookup.gb=1e9"], "lookup.gb=1000000000.0: must be below "),
        (["lookup.ways=3"], "lookup.ways=3: must be a power of two"),
        (["lookup.policy=mru"], "lookup.policy=mru: must be one of lru, lfu, static, not of type str"),
        (["lookup.state=steady"], "lookup.state=steady: one case would find what another has read"),
        (
            ["lookup.state=steady", "cases=[lookup]", "batches=1"],
            "batches=1: must be at least 2 for lookup.state=steady",
        ),
        (
            ["lookup.state=steady", "cases=[lookup]", "batches=15", "graph_calls=8"],
            "batches=15: must be at least 16 for lookup.state=steady",
        ),
        (
            ["lookup.state=steady", "decoder=tiny", "cases=[fetch,step]"],
            "lookup.state=steady: one case would find what",
        ),
        (
            ["lookup.state=steady", *PROMPT, "prefetch.lead=previous_step", "cases=[step]"],
            "lookup.state=steady: rows that come a step ahead would be there",
        ),
        (
            ["lookup.state=steady", "lookup.policy=static", "cases=[lookup]"],
            "lookup.state=steady: pinned rows are there",
        ),
        (["schedule=pipelined"], "schedule=pipelined: each chunk of the ring would have a cache of its own"),
        (["strategy=cached_copy", "capture=graph"], "capture=graph: the lookup waits for the host, which gathers rows"),
        (["decoder=dense_8b", "lookup.state=cold"], "lookup.state=cold: the steps of a sample follow each other"),
    ],
)
def test_what_a_cache_cannot_be_is_refused(configure, launched, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        check_plan(Plan(configure(*TINY, *CACHED, "cases=all", *overrides)))
    assert str(refusal.value).startswith(says)


def test_a_profile_is_made_of_batches_that_the_run_has_not(configure):
    parts = parts_of(configure(*TINY, *CACHED))
    asked = parts.batches.profile(parts.plan.tokens * 3)
    others = parts.batches.draw(range(4, 7))
    assert np.array_equal(asked, np.concatenate([parts.hash.plan.row_ids(*batch).numpy().ravel() for batch in others]))


def test_a_profile_in_a_file_is_taken_instead_unless_it_is_of_another_hash(configure, tmp_path):
    parts, file = parts_of(configure(*TINY, *CACHED)), tmp_path / "profile.npz"
    asked = np.array([7, 3, 7, 7], dtype=np.int32)
    write_profile(file, parts.hash.plan, asked)
    assert parts.batches.profile(100, str(file)).tolist() == [3, 7, 7, 7]
    of_layer = tmp_path / f"profile-{parts.plan.geometry.layer}.npz"
    file.rename(of_layer)
    assert len(parts.batches.profile(100, str(tmp_path / "profile-{layer}.npz"))) == 4
    for other in ("model.hash_seed=1", "layer=15", "model.heads=1"):
        others = parts_of(configure(*TINY, *CACHED, other))
        with pytest.raises(ConfigError, match=r"^lookup\.profile_path=.*is a profile of another model or layer"):
            others.batches.profile(100, str(of_layer))
    of_layer.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"^lookup\.profile_path=.*is no profile \(.*reuse TOKENS --profile FILE"):
        parts.batches.profile(100, str(of_layer))


def test_without_other_batches_there_is_no_profile(configure, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(24).reshape(2, 12))
    parts = parts_of(configure(*TINY, *CACHED, "tokens=ids", f"tokens.path={tmp_path / 'ids.npy'}"))
    with pytest.raises(ConfigError, match=r"^tokens: holds no batch but those of the run"):
        parts.batches.profile(100)


IN_A_STEP = ("cases=[fetch,ready,step]", "batches=3", "steps_per_sample=1", "iterations=2")
FEW = (*PROMPT, "batch_size=1", "seq_len=4")


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("overrides", "hit_rate"),
    [
        ((*DECODE,), 1.0),
        ((*DECODE, "lookup.state=cold", "prefetch.where=inline"), 0.0),
        ((*FEW, "prefetch.lead=previous_step", "dtype=fp8"), 1.0),
        ((*FEW, "prefetch.lead=previous_step", "lookup.state=cold"), 0.0),
        ((*DECODE, "strategies.3=uva", "prefetch.streams=each"), 1.0),
        ((*DECODE, "strategies.3=cached_copy", "lookup.state=cold"), 0.0),
        ((*FEW, "strategy=cached_copy", "prefetch.lead=previous_step", "dtype=fp8"), 1.0),
    ],
)
def test_layers_of_a_step_have_caches_of_their_own(run_inline, device, overrides, hit_rate):
    hardware = f"hardware={device}", f"capture={'none' if device == 'cpu' else 'graph'}"
    rows = {row["case"]: row for row in run_inline(*CACHED, *hardware, *overrides, *IN_A_STEP)}
    assert statuses(rows.values()) == dict.fromkeys(["fetch", "ready", "step"], "ok"), rows
    assert rows["fetch"]["cache_hit_rate"] == rows["step"]["cache_hit_rate"] == hit_rate
    assert rows["ready"].get("cache_hit_rate") is None, "its rows are in place"


@pytest.mark.slow
def test_what_a_cold_step_fetches_before_its_sample_hits_nothing(configure):
    overrides = (*FEW, "prefetch.lead=previous_step", "lookup.state=cold", "hardware=cpu", "capture=none")
    bench = bench_of(configure(*TINY, *CACHED, *overrides, *IN_A_STEP))
    case = bench.timed("step")
    with torch.inference_mode():
        for call in (case.calls[2], case.calls[0], case.calls[0], case.calls[1]):
            case.restore(call)
            case.before(call)
            case.behind(call, call())
    assert bench.columns("step", {})["cache_hit_rate"] == 0


def test_a_line_of_any_layer_that_is_damaged_is_a_mismatch_of_the_step(run_inline, monkeypatch):
    seen = []

    def flip_a_bit_of_the_second_layer(case, lookup, table):
        seen.append(lookup)
        if len(seen) == 2:
            lookup.cache.lines.view(torch.uint8)[int((lookup.cache.tags.flatten() >= 0).nonzero()[0]), 0] ^= 1
        require_kept(case, lookup, table)

    monkeypatch.setattr("engram_exp.run.step_caches.require_kept", flip_a_bit_of_the_second_layer)
    rows = run_inline(*CACHED, *DECODE, *IN_A_STEP, "cases=[step]")
    assert statuses(rows) == {"step": "mismatch"}
    assert "rows in the cache differ from the table" in rows[0]["error"]


def test_a_profile_of_a_trace_is_of_what_the_run_does_not_ask_for(run_inline, configure, tmp_path):
    np.save(tmp_path / "steps.npy", np.random.default_rng(0).integers(0, 50, (6, 2, 12)))
    trace = "tokens=trace", f"tokens.path={tmp_path / 'steps.npy'}", "batches=2"
    parts = parts_of(configure(*TINY, *CACHED, *trace))
    behind = parts.batches.draw(range(2, 6))
    asked = np.concatenate([parts.hash.plan.row_ids(*batch).numpy().ravel() for batch in behind])
    assert np.array_equal(parts.batches.profile(1000), asked)
    rows = run_inline(*CACHED, *trace, "lookup.policy=static", "cases=[lookup]")
    assert statuses(rows) == {"lookup": "ok"}
    assert 0 < rows[0]["cache_hit_rate"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [("tokens=zipf", "tokens.exponent=1.5"), ("tokens=text", "tokens.concurrency=2")])
def test_rows_of_other_tokens_are_kept_likewise(run_inline, tokens):
    rows = run_inline(*CACHED, *tokens, "batches=3", "cases=[lookup]")
    assert statuses(rows) == {"lookup": "ok"}
    assert rows[0]["cache_hit_rate"] == 1.0


@pytest.mark.accelerator
@pytest.mark.parametrize("how", [["capture=none"], ["capture=graph"], ["strategy=cached_copy", "table=pageable"]])
@pytest.mark.parametrize("overrides", [[], ["lookup.state=cold"], ["lookup.policy=static"], ["lookup.gb=0.00001"]])
def test_a_gpu_replays_it_or_asks_the_host(run_inline, how, overrides):
    rows = run_inline(
        *CACHED, "hardware=cuda", "batch_size=64", "seq_len=512", "dtype=fp8", *how, "cases=all", *overrides
    )
    assert {row["status"] for row in rows} == {"ok"}, rows
