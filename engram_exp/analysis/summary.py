"""Tables of medians, as Markdown: what a campaign's page shows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd

from engram_exp.analysis.compare import CHOICES, MIXED, WORKLOAD
from engram_exp.analysis.subjects import ABOUT, spelled
from engram_exp.results.schema import MEASURED, NUMBER_COLUMNS, OPTIONS, of_role
from engram_exp.vocabulary import CASES, OK

# Whatever could make it a different measurement: what was asked, how it was done, on what machine, by which code.
TOLD_APART = tuple(dict.fromkeys((*WORKLOAD, *ABOUT, *CHOICES, *MIXED)))


def markdown(frame: pd.DataFrame, index: Sequence[str], columns: str = "case", value: str = "wall_ms_median") -> str:
    """A table of one value of the runs in a campaign, four digits, by the given columns.

    Several runs in one cell are averaged by their median; if they differ in workload, way, machine, code or number of
    samples, a warning says in what. Those that differ in `options` never share one: the table gets that column, and a
    warning says so.

    Args:
        frame: as `load_results` returns it; rows that are not `ok` are left out.
        index: columns that tell the lines of the table apart.
        columns: the column whose values become the table's.
        value: what stands in it, a number.

    Raises:
        ValueError: a column that is no number, is wanted in two places, or is empty in all rows.
    """
    good = frame[frame["status"] == OK]
    _check(good, index, columns, value)
    good = good[good[value].notna()]
    mixed = _mixed(good, [*index, columns])
    if OPTIONS in mixed:
        warnings.warn(f"runs differ in {OPTIONS}: a line for each", stacklevel=2)
        index = [*index, OPTIONS]
        mixed = _mixed(good, [*index, columns])
    cells = good.groupby([*index, columns], dropna=False)
    if mixed:
        warnings.warn(f"cells mix several {', '.join(mixed)}: medians over all of them", stacklevel=2)
    table = cells[value].median().unstack(columns)
    if columns == "case":
        table = table[[case for case in CASES if case in table]]
    heads = [*index, *map(spelled, table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(index) + "---:|" * len(table.columns)]
    for key, row in table.iterrows():
        keys = key if isinstance(key, tuple) else (key,)
        lines.append("| " + " | ".join([*map(spelled, keys), *map(_digits, row)]) + " |")
    return "\n".join(lines)


def _mixed(good: pd.DataFrame, by: list[str]) -> list[str]:
    """Columns of which one cell holds several values."""
    cells = good.groupby(by, dropna=False)
    mixed = [name for name in TOLD_APART if (cells[name].nunique(dropna=False) > 1).any()]
    # Where the budget ends a case, its number of samples is chance, and no other measurement.
    wanted = good["iterations"].where(good["stop_reason"] == "iterations")
    if (wanted.groupby([good[name] for name in by], dropna=False).nunique() > 1).any():
        mixed.append("iterations")
    return mixed


def _check(good: pd.DataFrame, index: Sequence[str], columns: str, value: str) -> None:
    """Refuse what makes no table."""
    places = [*index, columns, value]
    twice = sorted({name for name in places if places.count(name) > 1})
    if twice:
        table = f"lines: {', '.join(index)}; --columns: {columns}; --value: {value}"
        raise ValueError(f"{', '.join(twice)}: wanted in two places ({table}); each column can stand in one")
    if not pd.api.types.is_numeric_dtype(good[value]) or pd.api.types.is_bool_dtype(good[value]):
        numbers = [name for name in of_role(MEASURED) if name in NUMBER_COLUMNS and name in good]
        raise ValueError(f"--value {value}: is no number; choose from {', '.join(numbers)}")
    if good[value].isna().all():
        raise ValueError(f"--value {value}: is empty in all of these rows")


def _digits(value: float) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"
