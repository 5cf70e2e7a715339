"""A report of a campaign for a colleague: one HTML page that works offline, its figures as SVG, a Markdown summary."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from engram_exp.analysis.advice_in_words import in_words, shared
from engram_exp.analysis.answers import Answer, answer, by_weight
from engram_exp.analysis.subjects import ABOUT, STEP, WAYS, as_typed, load_campaign, over_runs, subjects
from engram_exp.analysis.ways import with_bundles
from engram_exp.config import decoders
from engram_exp.pages.detail import detail
from engram_exp.results import schema
from engram_exp.results.integrity import DIGESTS
from engram_exp.results.load import LeftOutWarning, UncheckedWarning
from engram_exp.results.schema import ENVIRONMENT, NUMBER_COLUMNS, PUBLISHED, of_role
from engram_exp.vocabulary import OK

ASKED = ("model", "dtype", "tokens", "strategy", "batch_size", "seq_len", "case", "status")
DETAILS = tuple(name for name in dict.fromkeys((*STEP, *WAYS, *ABOUT)) if name not in ASKED)
NUMBERS = {"ms": "wall_ms_median", "lo": "wall_ms_lo", "hi": "wall_ms_hi"}  # as the rows name them
MORE_NUMBERS = {
    "device_ms_median": ("device_ms_median", "median"),
    "gb_per_s": ("gb_per_s", "median"),
    "efficiency": ("efficiency", "median"),
    "exposed_ms_median": ("exposed_ms_median", "median"),
    "limit_by": ("limit_by", "first"),
    "not_steady": ("not_steady", "sum"),
}
MEASURED = [name for name in (*NUMBERS.values(), *MORE_NUMBERS) if name in NUMBER_COLUMNS]
MACHINE = of_role(schema.MACHINE, schema.CODE)
MOST_SUBJECTS = 8  # with advice and figures of their own; more would be a page that nobody reads
DIGITS = 4  # of the numbers in the table


class ReportError(ValueError):
    """A report that cannot be written, and why."""


def report(
    folder: str | Path,
    output: str | Path,
    *,
    decode: int = 64,
    prefill: int = 8192,
    device_memory_gb: float = 0.0,
    only: Sequence[str] = (),
) -> Path:
    """Write the report of all runs below a folder.

    Args:
        folder: of campaigns.
        output: gets `index.html`, `summary.md` and `figures/*.svg`, and is made if it does not exist.
        decode, prefill, device_memory_gb: as `advise` takes them.
        only: `COLUMN=VALUE`, each: rows that have this value there are kept; the commands and environments that the
            page lists stay those of the folder.

    Returns:
        The page.

    Raises:
        ReportError: nothing was measured, or the libraries that draw are missing.
        FileNotFoundError, ValueError: no such folder, or no results in it, or none with these values.
    """
    _require_libraries()
    from engram_exp.pages.exposed import exposed_figures
    from engram_exp.pages.figures import figures
    from engram_exp.pages.page import write_page

    folder = Path(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = with_bundles(load_campaign(folder, only), decoders)
        commands, machines = _environments(folder)
    told = [warning.message for warning in caught if warning.category in (LeftOutWarning, UncheckedWarning)]
    about = subjects(frame)
    if not about:
        raise ReportError(f"{folder}: nothing was measured; its rows are {_counts(frame['status'])}")
    shown = by_weight(about)[:MOST_SUBJECTS]
    answers = [answer(subject, decode, prefill, device_memory_gb, decoders) for subject in shown]
    table, throughout = _table(frame)
    facts = {
        "title": folder.resolve().name,
        "asked": {"decode": decode, "prefill": prefill, "device_memory_gb": device_memory_gb},
        **_answers(answers),
        "subjects_not_shown": len(about) - len(shown),
        **_rows_in_words(frame),
        "left_out": [text for text in told if isinstance(text, LeftOutWarning)],
        "unchecked": [text for text in told if isinstance(text, UncheckedWarning)],
        "throughout": throughout,
        "commands": commands,
        "environments": machines,
    }
    page = write_page(Path(output), facts, table, [*exposed_figures(shown), *figures(frame, shown)])
    for text in told:
        warnings.warn(text, stacklevel=2)
    return page


def _require_libraries() -> None:
    missing = [name for name in ("altair", "jinja2", "vl_convert") if find_spec(name) is None]
    if missing:
        raise ReportError(f"{', '.join(missing)} missing: pip install -c constraints.txt -e '.[report]'")


def _answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """What is told of each subject, and of all of them together."""
    notes, engines = shared([in_words(one.advice) for one in answers if one.advice])
    details = [detail(one, notes) for one in answers]
    alone = [one for one in details if not (one.words and one.words.cards)]
    return {"details": details, "alone": alone, "notes": notes, "engines": engines}


def _rows_in_words(frame: pd.DataFrame) -> dict[str, Any]:
    """How many rows there are of what kind, and where they come from."""
    return {
        "runs": frame["run_id"].nunique(),
        "statuses": _counts(frame["status"]),
        "not_steady": int(frame["steady"].eq(False).sum()),
        "failures": _failures(frame),
        "hardware": _distinct(frame, ("device_name", "cpu_name", "torch_version")),
        "machines": _distinct(frame, MACHINE),
    }


def _table(frame: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """All rows as JSON, repetitions together; and what is the same in all of them, which is left out there."""
    times = frame[MEASURED].where(frame["status"] == OK)  # a suspect one is not shown
    frame = as_typed(frame).assign(not_steady=frame["steady"].eq(False), **times)
    table = over_runs(frame, [*ASKED, *DETAILS], **MORE_NUMBERS).rename(columns=NUMBERS)
    numbers = ["runs", *NUMBERS.values(), *MORE_NUMBERS]
    table = table[[*ASKED, *numbers, *DETAILS]]
    same = {name: table[name].iloc[0] for name in table if table[name].nunique(dropna=False) == 1}
    table = table.drop(columns=list(same))
    for name in set(numbers) & set(table.select_dtypes("float")):
        table[name] = table[name].map(f"{{:.{DIGITS}g}}".format).astype(float)
    throughout = {name: value for name, value in same.items() if value != "" and value == value}
    return table.to_json(orient="split", index=False), throughout


def _failures(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What gave no time, by reason."""
    failed = frame[frame["status"] != OK]
    groups = failed.groupby(["status", "error"], sort=False)
    return [
        {
            "status": status,
            "error": error,
            "rows": len(rows),
            "strategies": ", ".join(sorted(rows["strategy"].unique())),
            "cases": ", ".join(sorted(rows["case"].unique())),
        }
        for (status, error), rows in groups
    ]


def _distinct(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """What measured rows hold in some columns."""
    return frame.loc[frame["status"] == OK, list(columns)].drop_duplicates().to_dict("records")


def _counts(values: pd.Series[str]) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in values.value_counts().items())


def _environments(folder: Path) -> tuple[list[str], list[str]]:
    """The distinct commands and machines of the runs, the latter as JSON."""
    commands, machines = [], []
    for file in sorted(folder.rglob(ENVIRONMENT)):
        if PUBLISHED in file.relative_to(folder).parts:
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            for of_this_run in (DIGESTS, "load_before"):
                record.pop(of_this_run, None)
        except (ValueError, AttributeError, TypeError) as error:
            warnings.warn(f"{file} is left out: {error}", LeftOutWarning, stacklevel=2)
            continue
        commands.append(record.pop("command", "not recorded"))
        for gpu in record.get("gpus", []):
            gpu.pop("temperature_c", None)
        machines.append(json.dumps(record, indent=1))
    return list(dict.fromkeys(commands)), list(dict.fromkeys(machines))
