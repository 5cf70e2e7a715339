"""Continuous batching, replayed: the steps that an engine takes for some sequences, and their time by measured steps.

Prompts come first, as in nano-vLLM (whose benchmark the paper's workload resembles): as long as a sequence waits and
there is room, a step takes the prompts of those that have waited longest, whole, up to a number of tokens; otherwise it
makes one token of every sequence that runs. All sequences wait from the beginning, and none is put back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_exp.analysis.curves import MOST_APART

DECODE, PROMPT = "decode", "prompt"
SIZES_OF = {DECODE: "decode steps of {} sequences", PROMPT: "prompts of {} tokens"}
MOST_NAMED = 5  # shapes in a message


class ReplayError(ValueError):
    """Steps that cannot be replayed, and why."""


class Request(NamedTuple):
    """A sequence: the tokens of its prompt, and those that are made behind it, each at least 1."""

    prompt: int
    output: int


class Shape(NamedTuple):
    """What the time of a step depends on: the sequences that decode, or the tokens of the prompts."""

    kind: str
    size: int


class Step(NamedTuple):
    """A step, and the numbers of the sequences that it makes a token of."""

    shape: Shape
    members: tuple[int, ...]


def draw(sequences: int, shortest: int, longest: int, seed: int, prompt_share: float | None = None) -> list[Request]:
    """Sequences with lengths that are uniform between two, both among them.

    Args:
        sequences: how many.
        shortest, longest: tokens.
        seed: of the lengths.
        prompt_share: of a length that is its prompt, but for a token at least. None: prompt and output have such a
            length each, as in nano-vLLM's benchmark.

    Raises:
        ReplayError: lengths that no sequence can have.
    """
    least = 1 if prompt_share is None else 2
    if not least <= shortest <= longest:
        raise ReplayError(f"lengths of {shortest} to {longest} tokens: must ascend from {least} or more")
    random = np.random.default_rng(seed)
    if prompt_share is None:
        prompts, outputs = random.integers(shortest, longest, size=(2, sequences), endpoint=True).tolist()
    else:
        lengths = random.integers(shortest, longest, size=sequences, endpoint=True)
        prompts = np.clip(np.rint(prompt_share * lengths).astype(int), 1, lengths - 1)
        prompts, outputs = prompts.tolist(), (lengths - prompts).tolist()
    return [Request(*each) for each in zip(prompts, outputs, strict=True)]


def steps_of(requests: Sequence[Request], most_sequences: int, most_tokens: int) -> Iterator[Step]:
    """The steps that make every token of some sequences, the first of each in the step of its prompt.

    Args:
        requests: in the order in which they wait.
        most_sequences: that run at a time.
        most_tokens: of prompts in a step.

    Raises:
        ReplayError: a prompt that no step can take.
    """
    longest = max(request.prompt for request in requests)
    if longest > most_tokens:
        raise ReplayError(f"a prompt has {longest} tokens, and a step takes {most_tokens} at most: --max-tokens")
    waiting = deque(range(len(requests)))
    left: dict[int, int] = {}  # tokens that are still to be made of each that runs
    while waiting or left:
        admitted, tokens = [], 0
        while waiting and len(left) < most_sequences and tokens + requests[waiting[0]].prompt <= most_tokens:
            number = waiting.popleft()
            tokens += requests[number].prompt
            left[number] = requests[number].output
            admitted.append(number)
        members = tuple(admitted or left)
        yield Step(Shape(PROMPT, tokens) if admitted else Shape(DECODE, len(members)), members)
        for number in members:
            left[number] -= 1
            if not left[number]:
                del left[number]


@dataclass(frozen=True)
class Replay:
    """The time of a replay as a function of the times of measured shapes: a step between two of these takes what lies
    on the straight line between their logarithms, over the logarithm of its size. No time of a measured shape can grow
    without that of the replay.

    Args:
        counts: how often each shape occurs, [shapes].
        shares: how much each measured shape counts towards it, [shapes, measured]; each line adds up to 1.
        tokens: that are made.
    """

    counts: NDArray[np.float64]
    shares: NDArray[np.float64]
    tokens: int

    @classmethod
    def of(cls, steps: Iterable[Step], measured: Sequence[Shape]) -> Replay:
        """The replay of some steps.

        Args:
            steps: to be taken.
            measured: the shapes whose times are known.

        Raises:
            ReplayError: shapes beyond those measured of their kind, or between two that are more than a factor of
                `MOST_APART` apart, are named: nothing is extrapolated.
        """
        counts: Counter[Shape] = Counter()
        tokens = 0
        for step in steps:
            counts[step.shape] += 1
            tokens += len(step.members)
        shapes = sorted(counts)
        between = {shape: _between(shape, measured) for shape in shapes}
        _refuse([shape for shape in shapes if not between[shape]], measured)
        shares = [[between[shape].get(known, 0.0) for known in measured] for shape in shapes]
        return cls(np.array([counts[shape] for shape in shapes], float), np.array(shares), tokens)

    def tokens_per_s(self, ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens made in a second.

        Args:
            ms: times of the measured shapes, [..., measured].
        """
        total_ms = np.exp(np.log(ms) @ self.shares.T) @ self.counts
        return np.asarray(1e3 * self.tokens / total_ms)


def _between(shape: Shape, measured: Sequence[Shape]) -> dict[Shape, float]:
    """How much the measured shapes around one count towards it: itself alone, or its two neighbours; nothing if it has
    none."""
    sizes = sorted(size for kind, size in measured if kind == shape.kind)
    if shape.size in sizes:
        return {shape: 1.0}
    after = bisect_left(sizes, shape.size)
    if not 0 < after < len(sizes) or sizes[after] > MOST_APART * sizes[after - 1]:
        return {}
    low, high = sizes[after - 1 : after + 1]
    share = log(shape.size / low) / log(high / low)
    return {Shape(shape.kind, low): 1 - share, Shape(shape.kind, high): share}


def _refuse(unknown: Sequence[Shape], measured: Sequence[Shape]) -> None:
    """Name the shapes that nothing is known of, and what was measured of their kind."""
    lines = []
    for kind, text in SIZES_OF.items():
        sizes = [str(shape.size) for shape in unknown if shape.kind == kind]
        known = sorted(shape.size for shape in measured if shape.kind == kind)
        if sizes:
            more = f" and {len(sizes) - MOST_NAMED} more" if len(sizes) > MOST_NAMED else ""
            has = f"measured are {', '.join(map(str, known))}" if known else "none was measured"
            lines.append(f"{text.format(', '.join(sizes[-MOST_NAMED:]) + more)}: {has}")
    if lines:
        raise ReplayError(
            f"nothing is extrapolated, nor interpolated over a factor above {MOST_APART}; {'; '.join(lines)}"
        )
