"""The paper's table (arXiv 2601.07372, section 6.4) on the machine of a campaign: its workload, replayed over the steps
that the campaign measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engram_exp.analysis.replay import DECODE, MOST_NAMED, PROMPT, SIZES_OF, Replay, Shape, Step
from engram_exp.analysis.subjects import ABOUT, WAYS, about_of, as_typed, listed, spelled
from engram_exp.results import schema
from engram_exp.results.schema import of_role
from engram_exp.vocabulary import DECODER, IN_STEP, OK, READY

CASES = (DECODER, READY, IN_STEP)
PAPER = {"dense_4b": (9031.62, 8858.28), "dense_8b": (6315.52, 6140.02)}  # tokens/s without a table, and with one
OF_KIND = ("ids", "steps_per_sample")  # of a subject, what may differ between prompts and decode steps
SUBJECT = tuple(name for name in ABOUT if name not in OF_KIND)
ONE_WAY = tuple(  # in which all runs of a shape must be alike
    name for name in (*of_role(schema.STEP, schema.ASKED), *OF_KIND, *WAYS) if name not in ("batch_size", "seq_len")
)
RESAMPLES, FEWEST_ROUNDS = 1000, 6  # of an interval, as many rounds as the median of one process needs
TAILS = (2.5, 97.5)  # percentiles

Times = NDArray[np.float64]


class PaperError(ValueError):
    """A campaign that the paper's workload cannot be replayed over, and why."""


class Measured(NamedTuple):
    """The runs of one shape under one strategy.

    medians: of each process and case, ms, [processes, cases].
    rounds: samples of each process, ms, those of a round in one line, [rounds, cases].
    """

    medians: Times
    rounds: list[Times]


def paper_table(frame: pd.DataFrame, samples: pd.DataFrame, steps: Sequence[Step], seed: int = 0) -> pd.DataFrame:
    """The throughput of a workload, for each subject and strategy of a campaign.

    Args:
        frame: rows as `load_results` returns them. A step counts if `decoder`, `ready` and `step` were measured in one
            process: with one token of each sequence it decodes, with more of one sequence it is a prompt.
        samples: as `load_samples` returns them.
        steps: of the workload.
        seed: of what is drawn for the intervals.

    Returns:
        One row for each: the columns `SUBJECT` and `strategy`; `tokens_per_s_without` a table, with its rows
        `_in_place` before each step, and as the strategy has them (`tokens_per_s`); `loss_percent` by the layer and its
        table, `exposed_percent` by its rows not being in place, either with `_lo` and `_hi` (95 %; NaN where a process
        has too few samples); `processes`, the fewest that measured a shape; `few_rounds`, of which shapes a process has
        too few samples, and how many, in words; `paper_loss_percent`. The intervals come
        from drawing processes, and in each of them rounds, with replacement: of one process they hold what changes
        between its rounds alone, and of few processes they are rather too narrow.

    Raises:
        PaperError: there are no such rows, or a shape was measured in several ways.
        ReplayError: shapes that nothing is known of.
    """
    good = _steps_in(frame)
    rounds = _rounds(samples[samples["run_id"].isin(good["run_id"])])
    about = about_of(good)
    keys = [*(about[name] for name in SUBJECT), good["strategy"]]
    found = [
        dict(zip((*SUBJECT, "strategy"), key, strict=True)) | _line(rows, rounds, steps, seed)
        for key, rows in good.groupby(keys, sort=False, dropna=False)
    ]
    table = pd.DataFrame(found)
    losses = {decoder: 100 * (1 - offloaded / without) for decoder, (without, offloaded) in PAPER.items()}
    return table.assign(paper_loss_percent=table["decoder"].map(losses))


def _steps_in(frame: pd.DataFrame) -> pd.DataFrame:
    """The measured rows of decode steps and of prompts, of runs that have all three cases."""
    good = frame[(frame["status"] == OK) & frame["case"].isin(CASES)]
    decodes, is_prompt = good["seq_len"] == 1, (good["batch_size"] == 1) & (good["seq_len"] > 1)
    good = good.assign(
        kind=np.where(decodes, DECODE, PROMPT), size=good["batch_size"].where(decodes, good["seq_len"]).astype(int)
    )[decodes | is_prompt]
    good = good[good.groupby("run_id")["case"].transform("nunique") == len(CASES)]
    if good.empty:
        raise PaperError(
            f"the data hold no run that measured {', '.join(CASES)}; `python run.py experiment=paper` and "
            "experiment=paper_prompts do"
        )
    return good


def _rounds(samples: pd.DataFrame) -> dict[str, Times]:
    """The samples of each run in which all cases have one, [rounds, cases]."""
    once = samples.drop_duplicates(["run_id", "case", "iteration"])  # copies of a run are there twice
    table = once.pivot(index=["run_id", "iteration"], columns="case", values="wall_ms")
    if not table.columns.isin(CASES).any():
        return {}
    table = table.reindex(columns=[*CASES]).dropna()
    return {str(run): rows.to_numpy() for run, rows in table.groupby(level="run_id")}


def _line(rows: pd.DataFrame, rounds: dict[str, Times], steps: Sequence[Step], seed: int) -> dict[str, Any]:
    """What a strategy comes to."""
    kind, size = rows["kind"], rows["size"]
    measured = {
        shape: _measured(shape, rows[(kind == shape.kind) & (size == shape.size)], rounds)
        for shape in sorted(set(map(Shape, kind, size)))
    }
    replay = Replay.of(steps, list(measured))
    times = np.stack([np.median(each.medians, axis=0) for each in measured.values()], axis=-1)  # [cases, shapes]
    speeds = replay.tokens_per_s(times)
    line = dict(zip(("tokens_per_s_without", "tokens_per_s_in_place", "tokens_per_s"), speeds, strict=True))
    drawn = np.full((1, len(CASES)), np.nan)
    few_rounds = _few_rounds(measured)
    if not few_rounds:
        random = np.random.default_rng(seed)
        resampled = np.stack([_resampled(each.rounds, random) for each in measured.values()], axis=-1)
        drawn = replay.tokens_per_s(resampled)
    for name, base in (("loss", 0), ("exposed", 1)):
        low, high = np.percentile(_lost(drawn, base), TAILS)
        line |= {f"{name}_percent": _lost(speeds, base), f"{name}_lo": low, f"{name}_hi": high}
    return line | {"processes": min(len(each.medians) for each in measured.values()), "few_rounds": few_rounds}


def _few_rounds(measured: Mapping[Shape, Measured]) -> str:
    """The shapes of which a process has too few rounds for an interval, and how many it has; "": there is none."""
    fewest = {shape: min(map(len, each.rounds)) for shape, each in measured.items()}
    few = [f"{SIZES_OF[kind].format(size)} ({n})" for (kind, size), n in fewest.items() if n < FEWEST_ROUNDS]
    return ", ".join(few[:MOST_NAMED]) + (f" and {len(few) - MOST_NAMED} more" if len(few) > MOST_NAMED else "")


def _lost(speeds: Times, base: int) -> Any:
    """The percent by which the last of the cases is slower than another, [..., cases] -> [...]."""
    return 100 * (1 - speeds[..., -1] / speeds[..., base])


def _measured(shape: Shape, rows: pd.DataFrame, rounds: dict[str, Times]) -> Measured:
    steps = as_typed(rows[rows["case"] == IN_STEP])
    several = [name for name in ONE_WAY if steps[name].nunique(dropna=False) > 1]
    if several:
        has = "; ".join(f"{name}: {listed(steps[name].map(spelled))}" for name in several)
        size = f"seq_len={shape.size}" if shape.kind == PROMPT else f"batch_size={shape.size}"
        raise PaperError(
            f"strategy={steps['strategy'].iloc[0]}, {size} was measured in several ways ({has}); "
            f"keep one (--only {several[0]}=VALUE does)"
        )
    medians = rows.pivot(index="run_id", columns="case", values="wall_ms_median")[[*CASES]]
    none = np.empty((0, len(CASES)))
    return Measured(medians.to_numpy(), [rounds.get(str(run), none) for run in medians.index])


def _resampled(rounds: Sequence[Times], random: np.random.Generator) -> Times:
    """The times of a shape as often as it is drawn anew, [resamples, cases]: of processes with replacement, and of the
    rounds in each, the median of medians."""
    medians = np.stack(
        [np.median(each[random.integers(len(each), size=(RESAMPLES, len(each)))], axis=1) for each in rounds]
    )
    processes = random.integers(len(rounds), size=(len(rounds), RESAMPLES))
    return np.asarray(np.median(medians[processes, np.arange(RESAMPLES)], axis=0))
