"""The loop over cases, with clocks that say what they are told to."""

import itertools

import pytest

from engram_exp.measure import loop
from engram_exp.measure.clock import Sample
from engram_exp.measure.loop import Case, measure


class SetClock:
    """Calls take what it is told they take, the last for ever."""

    def __init__(self, *times_ms, sm_clocks_mhz=()):
        self.times_ms = list(times_ms)
        self.sm_clocks_mhz = list(sm_clocks_mhz)
        self.inside = False

    def time(self, call, *, uses_device):
        self.inside = True
        self.result = call()
        self.inside = False
        return Sample(self.times_ms.pop(0) if len(self.times_ms) > 1 else self.times_ms[0], None, None)

    def sm_clock_mhz(self):
        assert not self.inside
        return self.sm_clocks_mhz.pop(0) if self.sm_clocks_mhz else None


def measured(cases, clock, **options):
    defaults = {"iterations": 1, "budget_s": 10, "seed": 0, "progress": lambda *_: None}
    return measure(cases, clock, **{**defaults, **options})


def calls_and_timing(clock, **options):
    calls = []
    timing = measured([Case("a", [lambda: calls.append(1)], False)], clock, **options)["a"]
    return len(calls), timing


@pytest.mark.parametrize(("latest", "warming_up"), [(10.0, 6), (9.6, 6), (9.4, 7), (12.0, 6)])
def test_a_case_is_warm_once_three_calls_gain_less_than_a_twentieth(latest, warming_up):
    calls, _ = calls_and_timing(SetClock(10, 10, 10, latest))
    assert calls == warming_up + 1


@pytest.mark.parametrize(
    ("call_ms", "warming_up"),
    [
        pytest.param(7000, 1, id="a third of the budget"),
        pytest.param(1100, 5, id="five are a quarter of it"),
        pytest.param(800, 6, id="six are a quarter of it"),
        pytest.param(200, 6, id="six are a twentieth of it"),
    ],
)
def test_warming_up_takes_six_calls_unless_they_are_slow_for_the_budget(call_ms, warming_up):
    calls, timing = calls_and_timing(SetClock(call_ms), budget_s=20)
    assert calls == warming_up + 1
    assert timing.steady is None, "one sample tells nothing"


def test_what_never_settles_ends_warming_up_with_a_share_of_the_budget():
    falling = (1000 * 0.8**n for n in itertools.count())
    calls, _ = calls_and_timing(SetClock(*itertools.islice(falling, 100)), budget_s=80)
    assert calls == 8 + 1, "the eighth has spent 4 s"


@pytest.mark.parametrize(
    ("times_ms", "steady"),
    [
        ([10.0], True),
        ([*[10.0] * 9, 500.0, 10.0], True),
        ([100 - n for n in range(60)], False),
        ([10 + n for n in range(60)], False),
    ],
)
def test_steady_is_said_of_the_samples(times_ms, steady):
    _, timing = calls_and_timing(SetClock(*times_ms), iterations=20)
    assert timing.steady is steady


def test_a_slow_case_that_gave_two_samples_is_neither_steady_nor_unsteady():
    _, timing = calls_and_timing(SetClock(7000.0), iterations=50, budget_s=10)
    assert (len(timing.samples), timing.steady) == (2, None)


def test_a_budget_is_in_seconds():
    _, timing = calls_and_timing(SetClock(1000.0), iterations=10, budget_s=3)
    assert (len(timing.samples), timing.stop_reason, timing.spent_s) == (3, "budget", 3.0)


@pytest.mark.parametrize("fails_at", [1, 7, 9])
def test_a_case_that_fails_leaves_the_others(fails_at):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == fails_at:
            raise ValueError("lost")

    timings = measured([Case("fails", [fail], False), Case("goes on", [int], False)], SetClock(1.0), iterations=4)
    assert str(timings["fails"].error) == "lost"
    assert timings["fails"].stop_reason == "error"
    assert len(calls) == fails_at, "it is not called again"
    assert len(timings["fails"].samples) == max(0, fails_at - 7)
    assert (timings["goes on"].error, len(timings["goes on"].samples)) == (None, 4)


def test_every_sample_is_prepared_and_looked_at_outside_of_what_is_timed():
    clock, seen, calls = SetClock(1.0), [], [lambda: "one", lambda: "two"]

    def before(call):
        assert not clock.inside
        seen.append(call)

    def behind(call, result):
        assert not clock.inside
        seen.append((call, result))

    measured([Case("a", calls, False, before, behind), Case("b", [int], False)], clock, iterations=5)
    assert seen == [each for call in [*calls, *calls, calls[0]] for each in (call, (call, call()))]


def test_of_a_quick_case_one_sample_in_eight_is_looked_at():
    seen = []
    case = Case("a", [int], False, behind=lambda call, result: seen.append(len(timings["a"].samples)))
    timings = {}
    measured([case], SetClock(0.5), iterations=20, progress=lambda _, now: timings.update(now))
    assert seen == [0, 8, 16]


def test_a_result_that_is_refused_ends_its_case_alone_and_gives_no_sample():
    def refuse(call, result):
        raise ValueError("wrong result")

    cases = [Case("wrong", [int], False, behind=refuse), Case("right", [int], False)]
    timings = measured(cases, SetClock(1.0), iterations=5)
    assert str(timings["wrong"].error) == "wrong result"
    assert timings["wrong"].samples == []
    assert (timings["right"].error, len(timings["right"].samples)) == (None, 5)


def test_preemptions_are_those_of_the_samples(monkeypatch):
    clock, seen = SetClock(1.0), [0]

    def preempted():
        assert not clock.inside
        return seen[0]

    def busy():
        seen[0] += 3

    def between_samples(*_):
        seen[0] += 100

    monkeypatch.setattr(loop, "preemptions", preempted)
    timings = measured(
        [Case("busy", [busy], False), Case("quiet", [int], False)], clock, iterations=4, progress=between_samples
    )
    assert (timings["busy"].preempted, timings["quiet"].preempted) == (12, 0)


def test_preemptions_of_quick_samples_are_their_share_of_some_rounds(monkeypatch):
    now_s, seen, reads = [0.0], [0], []

    class Clock(SetClock):
        def time(self, call, *, uses_device):
            sample = super().time(call, uses_device=uses_device)
            now_s[0] += sample.wall_ms / 1e3
            seen[0] += 10
            return sample

    def preempted():
        reads.append(seen[0])
        return seen[0]

    def other_work(*_):
        now_s[0] += 0.0005

    monkeypatch.setattr(loop, "preemptions", preempted)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now_s[0])
    timings = measured([Case("a", [int], False)], Clock(0.5), iterations=16, progress=other_work)
    assert len(reads) == 2 * 2, "once before and once behind eight"
    assert timings["a"].preempted == pytest.approx(16 * 10 / 2, abs=10), "half of the time was spent elsewhere"


def test_behind_a_look_a_quick_case_is_called_once_more():
    calls = []
    measured([Case("a", [lambda: calls.append(1)], False, behind=lambda *_: None)], SetClock(0.5), iterations=16)
    assert len(calls) == 6 + 16 + 2


def test_the_lowest_clock_of_the_device_is_kept(monkeypatch):
    monkeypatch.setattr(loop, "SM_CLOCK_EVERY_S", 0.0)
    clock = SetClock(1.0, sm_clocks_mhz=[1980, 1755, 1900])
    timings = measured([Case("gpu", [int], True), Case("cpu", [int], False)], clock, iterations=3)
    assert timings["gpu"].sm_clock_mhz_min == 1755
    assert timings["cpu"].sm_clock_mhz_min is None


def test_the_clock_of_the_device_is_asked_for_only_now_and_then():
    clock = SetClock(0.1, sm_clocks_mhz=range(2000, 1000, -1))
    timing = measured([Case("gpu", [int], True)], clock, iterations=50)["gpu"]
    assert timing.sm_clock_mhz_min > 1950, "not behind each of 50 samples, which take no time"


def test_a_device_without_a_clock_to_read_has_none():
    assert measured([Case("gpu", [int], True)], SetClock(1.0), iterations=3)["gpu"].sm_clock_mhz_min is None


class Pauses:
    """A clock, and a sleep, that only count."""

    def __init__(self, monkeypatch, clock):
        self.now_s, self.seen, self.clock = 0.0, [], clock
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(loop.time, "sleep", self.sleep)

    def sleep(self, seconds):
        assert not self.clock.inside, "a pause is no part of what is timed"
        self.now_s += seconds
        self.seen.append(seconds)

    def call(self):
        self.seen.append("call")


@pytest.mark.parametrize("call_ms", [0.1, 5.0])
def test_a_pause_stands_right_before_every_call_of_every_case(monkeypatch, call_ms):
    clock = SetClock(call_ms)
    pauses = Pauses(monkeypatch, clock)
    cases = [
        Case(
            name, [pauses.call], False, lambda _: pauses.seen.append("before"), lambda *_: pauses.seen.append("behind")
        )
        for name in ("a", "b")
    ]
    timings = measured(cases, clock, iterations=9, pause_ms=2.0)
    assert pauses.seen == [0.002, "call"] * 12 + ["before", 0.002, "call", "behind"] * 18, "six calls warm a case up"
    assert [sample.wall_ms for sample in timings["a"].samples] == [call_ms] * 9


def test_without_a_pause_nothing_sleeps(monkeypatch):
    clock = SetClock(0.1)
    pauses = Pauses(monkeypatch, clock)
    measured([Case("a", [pauses.call], False)], clock, iterations=9)
    assert pauses.seen == ["call"] * (6 + 9)


def test_a_budget_ends_with_the_pauses_that_are_in_it(monkeypatch):
    clock = SetClock(1.0)
    Pauses(monkeypatch, clock)
    timing = measured([Case("a", [int], False)], clock, iterations=1000, budget_s=1, pause_ms=124.0)["a"]
    assert (len(timing.samples), timing.stop_reason, timing.spent_s) == (8, "budget", 1.0)
    timing = measured([Case("a", [int], False)], clock, iterations=1000, budget_s=20, pause_ms=2.0)["a"]
    assert timing.stop_reason == "iterations"


def test_warming_up_is_ended_by_a_budget_of_pauses(monkeypatch):
    clock = SetClock(1.0)
    pauses = Pauses(monkeypatch, clock)
    measured([Case("a", [pauses.call], False)], clock, budget_s=1, pause_ms=149.0)
    assert pauses.seen.count("call") == 2 + 1, "the second call has spent a quarter of it"


def test_preemptions_of_pauses_are_not_those_of_the_samples(monkeypatch):
    clock, count = SetClock(0.1), [0]
    pauses = Pauses(monkeypatch, clock)

    def busy():
        count[0] += 3
        pauses.now_s += 0.0001

    def sleep(seconds):
        pauses.now_s += seconds
        count[0] += 100

    monkeypatch.setattr(loop.time, "sleep", sleep)
    monkeypatch.setattr(loop, "preemptions", lambda: count[0])
    timings = measured([Case("busy", [busy], False), Case("quiet", [int], False)], clock, iterations=9, pause_ms=2.0)
    assert (timings["busy"].preempted, timings["quiet"].preempted) == (27, 0)
