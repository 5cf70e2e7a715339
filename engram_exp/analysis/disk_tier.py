"""Tables on a disk as a tier below host memory: which strategies have them there, and from what size of step on a model
waits for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile

import pandas as pd

from engram_exp.analysis.engines import USES
from engram_exp.analysis.exposed import Exposed, Step

LEAST_PERCENT = 1.0  # of a step: less is called hidden


def on_disk(rows: pd.DataFrame) -> list[str]:
    """The strategies that keep the tables of all layers in files."""
    of_files = (rows["page_cache"] != "") & ~rows["strategy"].str.contains("strategies.", regex=False)
    return sorted(rows.loc[of_files, "strategy"].unique())


def thresholds(steps: Sequence[Step], strategies: Collection[str]) -> list[str]:
    """From how many tokens of a step on each of these strategies is exposed, in words: at that size and at all that are
    larger, as hidden is what is hidden at all that are smaller."""
    found = []
    for use in USES:
        for name in strategies:
            sizes = sorted((step.tokens, one) for step in steps if step.use == use and (one := step.of(name)))
            if not sizes:
                continue
            hidden = [*takewhile(lambda size: _most(size[1]) <= LEAST_PERCENT, sizes)]
            exposed = [*takewhile(lambda size: _least(size[1]) > LEAST_PERCENT, reversed(sizes))]
            told = [f"less than {LEAST_PERCENT:g} % of the step up to {hidden[-1][0]:,} tokens"] if hidden else []
            told += [f"more than that from {exposed[-1][0]:,} tokens on"] if exposed else []
            text = ", ".join(told) or f"about {LEAST_PERCENT:g} % of the step, wherever it was measured"
            found.append(f"tables on a disk (strategy={name}) expose, of {use}: {text}")
    return found


def _most(one: Exposed) -> float:
    return (one.percent or 0.0) if one.percent_hi is None else one.percent_hi


def _least(one: Exposed) -> float:
    return (one.percent or 0.0) if one.percent_lo is None else one.percent_lo
