import gc
import time

import pytest
import torch

from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Case, measure

CPU_CLOCK = Clock(torch.device("cpu"))


def measured(cases, **options):
    defaults = {"iterations": 10, "budget_s": 10, "seed": 0, "progress": lambda *_: None}
    return measure(cases, CPU_CLOCK, **{**defaults, **options})


@pytest.mark.slow
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


def test_no_garbage_is_collected_while_timing_and_collection_comes_back():
    states = []
    measured([Case("gc", [lambda: states.append(gc.isenabled())], False)], iterations=3)
    assert not any(states)
    assert gc.isenabled()


def test_an_interruption_is_not_a_failed_case():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured([Case("stopped", [interrupt], False)])
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


@pytest.mark.accelerator
@pytest.mark.parametrize("shared", [True, False])
def test_on_a_shared_device_only_the_current_stream_is_waited_for(shared):
    clock, other, done = Clock(torch.device("cuda"), shared=shared), torch.cuda.Stream(), torch.cuda.Event()
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        for _ in range(200):
            torch.mm(a, a)
        done.record()
    clock.time(lambda: None, uses_device=True)
    assert done.query() != shared
    torch.cuda.synchronize()
