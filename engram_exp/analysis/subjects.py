"""What a campaign is about: rows that may stand in one figure, and the fastest way that each strategy was run in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from engram_exp.results import schema
from engram_exp.results.load import load_results
from engram_exp.results.schema import of_role
from engram_exp.vocabulary import AUTO, FULL, OK

WAYS = of_role(schema.WAY, schema.OPTIONS)  # of several, the fastest stands for a strategy
# Their value is a choice, too, where it is empty and the other column has one: null. Elsewhere they do not apply.
NULL_WHERE = {"programs": "rows_per_program", "chunk_tokens": "schedule"}
STEP = of_role(schema.STEP)
PHRASES = {
    "tokens": "{} tokens",
    "fusion": "fusion={}",
    "layer": "layer {:g}",
    "row_bytes": "rows of {:g} bytes",
    "table_scale": "table_scale={:g}",
    "pause_ms": "pause_ms={:g}",
    "graph_calls": "graph_calls={:g}",
    "steps_per_sample": "steps_per_sample={:g}",
    "host_load": "host_load={:g}",
    "link_load_gb_per_s": "link_load_gb_per_s={:g}",
    "link_load_block_kib": "link_load_block_kib={:g}",
    "decoder": "decoder={}",
    "engram_layers": "tables at layers {}",
    "ids": "ids made on the {}",
    "ranks": "ranks={:g}",
    "nodes": "nodes={:g}",
    "rank_batches": "rank_batches={}",
    "threads": "{:g} threads",
}
# What no figure and no advice mixes, and its words; of the options, those that belong to one of these (`about_of`).
ABOUT = {
    name: PHRASES.get(name, "{}")
    for name in (*of_role(schema.SUBJECT, schema.OPTIONS), "device_name", "cpu_name", "threads")
}
ALWAYS_TOLD = ("model", "dtype", "tokens")
MOST_LISTED = 20  # values in a message


class Subject(NamedTuple):
    """Rows of one model, dtype, kind of tokens, options of these, and machine.

    label: tells it apart from the other subjects of its campaign.
    rows: measured ones, with `tokens_per_step`.
    """

    label: str
    rows: pd.DataFrame


def load_campaign(folder: str | Path, only: Sequence[str] = ()) -> pd.DataFrame:
    """As `load_results`, for those who need something in it.

    Args:
        folder: of runs.
        only: `COLUMN=VALUE`, each: rows that have this value there are kept, or another that is named of this column.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no results, or none with these values.
    """
    frame = load_results(folder)
    if frame.empty:
        raise ValueError(f"{folder}: no results below it; `python run.py output_dir={folder}` writes some there")
    wanted: dict[str, set[str]] = {}
    for choice in only:
        column, sign, value = choice.partition("=")
        if not sign:
            raise ValueError(f"--only {choice}: must be COLUMN=VALUE")
        if column not in frame:
            raise ValueError(f"--only {choice}: no column {column}; choose from {', '.join(frame.columns)}")
        wanted.setdefault(column, set()).add(value)
    for column, values in wanted.items():
        texts = with_nulls(frame)[column].map(spelled)
        if missing := sorted(values - set(texts)):
            raise ValueError(f"{folder}: --only {column}={missing[0]}: never there; {column} is {listed(texts)}")
        frame = frame[texts.isin(values)]
    return frame


def spelled(value: Any) -> str:
    """A value of a column as one types it: 128, not 128.0; an empty one is the empty text."""
    if value is None or value != value:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def listed(texts: Iterable[str]) -> str:
    """The distinct ones among some texts, for a message."""
    values = sorted(set(texts))
    more = f" and {len(values) - MOST_LISTED} others" if len(values) > MOST_LISTED else ""
    return ", ".join(text or "''" for text in values[:MOST_LISTED]) + more


def varying(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Those of some columns that have several values in the rows: by the others, which cost pandas as much, no group is
    parted."""
    return [name for name in names if rows[name].nunique(dropna=False) > 1]


def with_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows and their `tokens_per_step`."""
    return frame.assign(tokens_per_step=frame["batch_size"] * frame["seq_len"])


def with_nulls(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `null` where an empty value is a choice, so that other empty ones mean that nothing is chosen."""
    for name, other in NULL_WHERE.items():
        empty = {column: rows[column].map(spelled) == "" for column in (name, other)}
        rows = rows.assign(**{name: rows[name].astype(object).mask(empty[name] & ~empty[other], "null")})
    return rows


def as_typed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `auto` in place of what it came to, which may differ from one repetition to the next."""
    for name in {name: None for text in rows["by_auto"].unique() for name in text.split()}:
        is_auto = rows["by_auto"].str.split().map(lambda names, name=name: name in names)
        rows = rows.assign(**{name: rows[name].astype(object).mask(is_auto, AUTO)})
    return rows


def asks(option: str) -> bool:
    """Whether one of the options (`model.hc_mult=1`) changes what is asked of a run, not how it does it."""
    return option.lstrip("~").partition(".")[0] in of_role(schema.SUBJECT)


def without(options: pd.Series[str], is_left_out: Callable[[str], bool]) -> pd.Series[str]:
    """The texts of a column `options` without some of them."""
    texts = {text: " ".join(one for one in text.split() if not is_left_out(one)) for text in options.unique()}
    return options.map(texts)


def about_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns `ABOUT` of rows: of `options` only what changes what is asked, since the rest makes another way."""
    return frame[[*ABOUT]].assign(options=without(frame["options"], lambda option: not asks(option)))


def subjects(frame: pd.DataFrame) -> list[Subject]:
    """Split measured rows by what they are about, in the order of the campaign."""
    good = with_tokens(frame[frame["status"] == OK])
    about = about_of(good)
    told = [name for name in ABOUT if name in ALWAYS_TOLD or about[name].nunique(dropna=False) > 1]
    return [
        Subject(_label(dict(zip(ABOUT, key, strict=True)), told), rows)
        for key, rows in good.groupby([about[name] for name in ABOUT], sort=False, dropna=False)
    ]


def _label(values: dict[str, object], told: list[str]) -> str:
    return ", ".join(ABOUT[name].format(values[name]) for name in told if spelled(values[name]))


def in_one_shape(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one subject, at each number of tokens per step the rows of one shape (batch size, length, history, batches):
    that in which the most strategies were measured; of several such, that of the most runs; of these, the first in
    ascending order. Where `full` was timed, its rows decide."""
    full, size = rows["case"] == FULL, rows["tokens_per_step"]
    decisive = rows[full | ~full.groupby(size).transform("any")]
    shapes = (
        decisive.groupby(["tokens_per_step", *STEP], dropna=False)
        .agg(strategies=("strategy", "nunique"), runs=("run_id", "nunique"))
        .sort_index()
        .sort_values(["strategies", "runs"], ascending=False, kind="stable")
        .reset_index()
    )
    return rows.merge(shapes.drop_duplicates("tokens_per_step")[["tokens_per_step", *STEP]])


def fastest_ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one subject, the rows of the way whose `full` is the fastest, for each strategy and number of tokens per step,
    all strategies in one shape (`in_one_shape`); of several repetitions, all. Where no `full` was timed, the fastest
    way of each case."""
    rows = as_typed(in_one_shape(rows))
    key = ["strategy", "tokens_per_step"]
    way = rows.groupby([*key, *varying(rows, WAYS)], dropna=False).ngroup()
    full = rows["case"] == FULL
    of_full = way[full].groupby(rows["run_id"][full]).first()  # other cases of a run may be launched otherwise
    way = way.where(full, rows["run_id"].map(of_full).fillna(way)).astype(int)
    full_ms = way.map(rows["wall_ms_median"].where(full).groupby(way).median())
    case_ms = rows.groupby([way, "case"])["wall_ms_median"].transform("median")
    has_full = full.groupby([rows[name] for name in key]).transform("any")
    ms = full_ms.where(has_full, case_ms)
    decided_together = rows["case"].where(~has_full, FULL)
    return rows[ms == ms.groupby([*(rows[name] for name in key), decided_together]).transform("min")]


def over_runs(rows: pd.DataFrame, by: Sequence[str], **more: tuple[str, Any]) -> pd.DataFrame:
    """Repetitions together.

    Args:
        rows: as `load_results` returns them.
        by: columns that tell configurations and cases apart.
        more: columns of the result beyond those below, as `DataFrameGroupBy.agg` names them.

    Returns:
        One row for each: `by`, the number of `runs`, the median `ms` of their medians, `lo` and `hi` that hold all
        their 95 % intervals (NaN where a run has none), and `more`.
    """
    numbers = {
        "runs": ("run_id", "nunique"),
        "ms": ("wall_ms_median", "median"),
        "lo": ("wall_ms_lo", lambda values: values.min(skipna=False)),
        "hi": ("wall_ms_hi", lambda values: values.max(skipna=False)),
    }
    return rows.groupby(list(by), dropna=False, sort=False).agg(**numbers, **more).reset_index()
