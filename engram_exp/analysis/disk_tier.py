"""Tables on a disk as a tier below host memory: which strategies have them there, and from what size of step on a model
waits for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from engram_exp.analysis.engines import USES
from engram_exp.analysis.exposed import Exposed, Step
from engram_exp.analysis.placements import tables_on_host
from engram_exp.analysis.worth import row_memory_gb
from engram_exp.vocabulary import HOST

LEAST_PERCENT = 1.0  # of a step: less is called hidden


def on_disk(rows: pd.DataFrame) -> list[str]:
    """The strategies that keep the tables of all layers in files."""
    of_files = (rows["page_cache"] != "") & ~rows["strategy"].str.contains("strategies.", regex=False)
    return sorted(rows.loc[of_files, "strategy"].unique())


def on_host_gb(rows: pd.DataFrame, tables_gb: float, layers: int) -> dict[str, float]:
    """What each strategy keeps of the tables of so many layers in the memory of the host, at full size: for all ranks;
    of files, rows in front of them."""
    files = on_disk(rows)
    times = tables_on_host(rows).groupby(rows["strategy"]).first()
    in_front = (row_memory_gb(rows, HOST) * layers).groupby(rows["strategy"]).max()
    return {str(name): float(in_front[name]) if name in files else tables_gb * many for name, many in times.items()}


def thresholds(steps: Sequence[Step], strategies: Collection[str]) -> list[str]:
    """From how many tokens of a step on each of these strategies is exposed, in words."""
    found = []
    for use in USES:
        for name in strategies:
            sizes = sorted((step.tokens, one) for step in steps if step.use == use and (one := step.of(name)))
            hidden = [tokens for tokens, one in sizes if _most(one) <= LEAST_PERCENT]
            exposed = [tokens for tokens, one in sizes if _least(one) > LEAST_PERCENT]
            if not sizes:
                continue
            told = [f"less than {LEAST_PERCENT:g} % of the step up to {hidden[-1]:,} tokens"] if hidden else []
            told += [f"more than that from {exposed[0]:,} tokens on"] if exposed else []
            text = ", ".join(told) or f"about {LEAST_PERCENT:g} % of the step, wherever it was measured"
            found.append(f"tables on a disk (strategy={name}) expose, of {use}: {text}")
    return found


def _most(one: Exposed) -> float:
    return (one.percent or 0.0) if one.percent_hi is None else one.percent_hi


def _least(one: Exposed) -> float:
    return (one.percent or 0.0) if one.percent_lo is None else one.percent_lo
