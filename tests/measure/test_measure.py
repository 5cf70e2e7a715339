import gc
import time

import pytest
import torch

from engram_exp.machine import environment
from engram_exp.measure.clock import Clock, Sample
from engram_exp.measure.loop import Case, measure

CPU_CLOCK = Clock(torch.device("cpu"))


def measured(cases, **options):
    defaults = {"iterations": 10, "budget_s": 10, "seed": 0, "progress": lambda *_: None}
    return measure(cases, CPU_CLOCK, **{**defaults, **options})


def test_cases_are_interleaved_in_a_seeded_order_and_inputs_rotate():
    seen = []

    def cases():
        return [Case(name, [lambda c=(name, k): seen.append(c) for k in range(3)], False) for name in "ab"]

    timings = measured(cases(), seed=1)
    warm_up = [k for name, k in seen[: len(seen) - 20] if name == "a"]
    assert warm_up[:4] == [2, 1, 0, 2], "away from the inputs that are timed first"
    del seen[: len(seen) - 20]
    turns = [k for name, k in seen if name == "a"]
    assert turns == [n % 3 for n in range(10)]
    assert all(seen[i][1] != seen[i + 1][1] for i in range(0, 20, 2)), "one must not warm another's input"
    rounds = [tuple(name for name, _ in seen[i : i + 2]) for i in range(0, 20, 2)]
    assert {frozenset(pair) for pair in rounds} == {frozenset("ab")}, "every case once a round"
    assert len(set(rounds)) == 2, "in both orders"
    first, seen[:] = [name for name, _ in seen], []
    measured(cases(), seed=1)
    assert [name for name, _ in seen[-20:]] == first
    assert sorted(timings["a"].order + timings["b"].order) == list(range(20))


def test_warming_up_ends_when_times_stop_falling():
    calls = []

    def falling():
        time.sleep(0.02 * 0.5 ** len(calls))
        calls.append(1)

    timings = measured([Case("falling", [falling], False)], iterations=1)
    assert timings["falling"].steady
    assert 6 <= len(calls) < 40


def test_what_never_settles_is_not_called_steady():
    timings = measured([Case("slow", [lambda: time.sleep(0.02)], False)], iterations=2, budget_s=0.1)
    assert not timings["slow"].steady
    assert timings["slow"].stop_reason == "iterations"


def test_no_garbage_is_collected_while_timing_and_collection_comes_back():
    states = []
    measured([Case("gc", [lambda: states.append(gc.isenabled())], False)], iterations=3)
    assert not any(states)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measured([Case("fails", [lambda: 1 / 0], False)])
    assert gc.isenabled()


def test_wall_time_is_that_of_the_call():
    sample = CPU_CLOCK.time(lambda: time.sleep(0.03), uses_device=True)
    assert 30 <= sample.wall_ms < 300
    assert (sample.device_ms, sample.enqueue_ms) == (None, None)


@pytest.mark.accelerator
def test_the_three_clocks_of_a_device():
    clock = Clock(torch.device("cuda"))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.mm(a, a)
    queued = clock.time(lambda: [torch.mm(a, a) for _ in range(20)], uses_device=True)
    assert queued.enqueue_ms < 0.5 * queued.device_ms
    assert queued.device_ms <= queued.wall_ms < 1.5 * queued.device_ms
    idle = clock.time(lambda: time.sleep(0.05), uses_device=True)
    assert idle.wall_ms >= 50
    assert clock.time(lambda: None, uses_device=False).device_ms is None


def test_a_stamp_identifies_code_and_machine(monkeypatch, tmp_path):
    stamp = environment.stamp()
    assert stamp["cpu_name"]
    assert stamp["torch_version"].startswith("2.")
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    assert environment.stamp.__wrapped__()["git_sha"] is None, "not installed from a repository"


class SetClock:
    """Calls take what it is told they take, the last for ever."""

    def __init__(self, *times_ms):
        self.times_ms = list(times_ms)

    def time(self, do, *, uses_device):
        do()
        return Sample(self.times_ms.pop(0) if len(self.times_ms) > 1 else self.times_ms[0], None, None)


def calls_and_timing(clock, **options):
    calls = []
    options = {"iterations": 1, "budget_s": 10, "seed": 0, "progress": lambda *_: None, **options}
    timing = measure([Case("a", [lambda: calls.append(1)], False)], clock, **options)["a"]
    return len(calls), timing


@pytest.mark.parametrize(("latest", "warming_up"), [(10.0, 6), (9.6, 6), (9.4, 7), (12.0, 6)])
def test_times_are_steady_once_three_calls_gain_less_than_a_twentieth(latest, warming_up):
    calls, timing = calls_and_timing(SetClock(10, 10, 10, latest))
    assert timing.steady
    assert calls == warming_up + 1


def test_a_budget_is_in_seconds():
    _, timing = calls_and_timing(SetClock(1000.0), iterations=10, budget_s=3)
    assert (len(timing.samples), timing.stop_reason, timing.spent_s) == (3, "budget", 3.0)


def test_warming_up_takes_a_share_of_the_budget():
    timings = measured([Case("slow", [lambda: time.sleep(0.03)], False)], iterations=1, budget_s=1)
    assert not timings["slow"].steady, "6 calls take more than 5 % of a second"
