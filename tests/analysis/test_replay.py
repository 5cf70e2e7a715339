"""Continuous batching, replayed: every token once, and no time that does not follow from measured ones."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.analysis.replay import DECODE, PROMPT, Replay, ReplayError, Request, Shape, Step, draw, steps_of

MOST_TOKENS = 64
REQUESTS = st.lists(st.builds(Request, st.integers(1, MOST_TOKENS), st.integers(1, 12)), min_size=1, max_size=20)
AT_A_TIME = st.integers(1, 24)
GRID = [*(Shape(DECODE, 2**n) for n in range(6)), *(Shape(PROMPT, 2**n) for n in range(7))]
TIMES = st.lists(st.floats(0.01, 100), min_size=len(GRID), max_size=len(GRID))


def replay_of(requests, at_a_time=24, measured=GRID):
    return Replay.of(steps_of(requests, at_a_time, MOST_TOKENS), measured)


@given(REQUESTS, AT_A_TIME)
def test_every_token_is_made_once_and_the_first_with_its_prompt(requests, at_a_time):
    steps = list(steps_of(requests, at_a_time, MOST_TOKENS))
    made: Counter[int] = Counter()
    for (kind, size), members in steps:
        assert len(set(members)) == len(members)
        for number in members:
            assert (made[number] == 0) == (kind == PROMPT)
        assert size == (sum(requests[number].prompt for number in members) if kind == PROMPT else len(members))
        made.update(members)
    assert made == {number: request.output for number, request in enumerate(requests)}


@given(REQUESTS, AT_A_TIME)
def test_a_step_takes_no_more_than_it_may_and_prompts_come_first(requests, at_a_time):
    made: Counter[int] = Counter()
    waiting = list(range(len(requests)))
    for (kind, size), members in steps_of(requests, at_a_time, MOST_TOKENS):
        running = [number for number in made if made[number] < requests[number].output]
        if kind == PROMPT:
            assert size <= MOST_TOKENS
            assert list(members) == waiting[: len(members)], "those that have waited longest"
            waiting = waiting[len(members) :]
            assert len(running) + len(members) <= at_a_time
        else:
            assert sorted(members) == sorted(running), "all that run"
            assert not waiting or len(running) == at_a_time, "there was no room for a prompt"
        made.update(members)


@given(REQUESTS, AT_A_TIME, st.floats(0.01, 100))
def test_steps_of_one_time_take_as_long_as_there_are_steps(requests, at_a_time, ms):
    steps = list(steps_of(requests, at_a_time, MOST_TOKENS))
    speed = Replay.of(steps, GRID).tokens_per_s(np.full(len(GRID), ms))
    assert speed == pytest.approx(1e3 * sum(request.output for request in requests) / (ms * len(steps)))


@given(st.lists(st.sampled_from(GRID), min_size=1, max_size=30), TIMES)
def test_the_time_of_measured_shapes_is_their_sum(shapes, times):
    steps = [Step(shape, (0, 1)) for shape in shapes]
    total_ms = sum(times[GRID.index(shape)] for shape in shapes)
    assert Replay.of(steps, GRID).tokens_per_s(np.array(times)) == pytest.approx(2e3 * len(steps) / total_ms)


@given(REQUESTS, AT_A_TIME, TIMES, st.sampled_from(range(len(GRID))), st.floats(0, 10))
def test_no_step_that_takes_longer_makes_more_tokens_a_second(requests, at_a_time, times, longer, exposed_ms):
    replay, before = replay_of(requests, at_a_time), np.array(times)
    after = before.copy()
    after[longer] += exposed_ms
    assert replay.tokens_per_s(after) <= replay.tokens_per_s(before) * (1 + 1e-12)


@given(TIMES, st.integers(1, 32))
def test_a_time_lies_between_those_of_its_neighbours(times, size):
    ms = np.array(times)
    known = {shape.size: value for shape, value in zip(GRID, ms, strict=True) if shape.kind == DECODE}
    step_ms = 1e3 / Replay.of([Step(Shape(DECODE, size), (0,))], GRID).tokens_per_s(ms)
    low, high = max(each for each in known if each <= size), min(each for each in known if each >= size)
    assert step_ms >= min(known[low], known[high]) * (1 - 1e-9)
    assert step_ms <= max(known[low], known[high]) * (1 + 1e-9)


def test_a_power_of_the_size_is_met():
    ms = np.array([shape.size**0.7 for shape in GRID])
    assert Replay.of([Step(Shape(PROMPT, 49), (0,))], GRID).tokens_per_s(ms) == pytest.approx(1e3 / 49**0.7)


def test_many_times_at_once_are_as_each_of_them():
    replay = replay_of([Request(5, 7), Request(40, 3)])
    many = np.random.default_rng(0).uniform(1, 2, (4, len(GRID)))
    assert replay.tokens_per_s(many) == pytest.approx([float(replay.tokens_per_s(one)) for one in many])


@pytest.mark.parametrize(
    ("shapes", "measured", "says"),
    [
        ([Shape(DECODE, 33)], GRID, r"; decode steps of 33 sequences: measured are 1, 2, 4, 8, 16, 32$"),
        ([Shape(PROMPT, 3)], [Shape(PROMPT, 4), Shape(PROMPT, 8)], r"; prompts of 3 tokens: measured are 4, 8$"),
        ([Shape(PROMPT, 3)], [Shape(PROMPT, 1), Shape(PROMPT, 8)], r"; prompts of 3 tokens: measured are 1, 8$"),
        ([Shape(PROMPT, 4)], [Shape(DECODE, 4)], r"; prompts of 4 tokens: none was measured$"),
        (
            [Shape(DECODE, n) for n in range(2, 9)],
            [],
            r"; decode steps of 4, 5, 6, 7, 8 and 2 more sequences: none",
        ),
    ],
)
def test_nothing_is_extrapolated(shapes, measured, says):
    with pytest.raises(ReplayError, match=f"^nothing is extrapolated, nor interpolated over a factor above 4{says}"):
        Replay.of([Step(shape, (0,)) for shape in shapes], measured)


def test_a_prompt_that_no_step_takes_is_refused():
    with pytest.raises(ReplayError, match=r"^a prompt has 65 tokens, and a step takes 64 at most: --max-tokens$"):
        list(steps_of([Request(65, 1)], 1, MOST_TOKENS))


@given(st.integers(1, 50), st.integers(2, 40), st.integers(0, 40), st.integers(0, 9), st.floats(0.01, 0.99))
def test_lengths_are_those_asked_for(sequences, shortest, more, seed, share):
    longest = shortest + more
    apart, shared = draw(sequences, shortest, longest, seed), draw(sequences, shortest, longest, seed, share)
    assert len(apart) == len(shared) == sequences
    assert apart == draw(sequences, shortest, longest, seed)
    for request in apart:
        assert shortest <= min(request) <= max(request) <= longest
    for prompt, output in shared:
        assert min(prompt, output) >= 1
        assert shortest <= prompt + output <= longest
        assert abs(prompt - share * (prompt + output)) <= 1


def test_all_lengths_come_up_and_another_seed_draws_others():
    assert {each for request in draw(500, 3, 6, seed=0) for each in request} == {3, 4, 5, 6}
    assert draw(500, 3, 6, seed=0) != draw(500, 3, 6, seed=1)


@pytest.mark.parametrize(("lengths", "share", "least"), [((5, 4), None, 1), ((0, 4), None, 1), ((1, 4), 0.5, 2)])
def test_lengths_that_no_sequence_has_are_refused(lengths, share, least):
    with pytest.raises(ReplayError, match=rf"^lengths of {lengths[0]} to 4 tokens: must ascend from {least} or more$"):
        draw(1, *lengths, seed=0, prompt_share=share)
