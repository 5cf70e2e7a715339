"""Times that something else on the machine may have lengthened: which, why, and how many."""

from __future__ import annotations

from typing import Any

import pandas as pd

from engram_exp.analysis.subjects import WAYS, varying
from engram_exp.machine.disturbance import is_disturbed
from engram_exp.results import schema
from engram_exp.results.schema import of_role
from engram_exp.vocabulary import IN_SERIES, OK, UPLOADS, WHOLES

FACTOR = 2.0  # beyond it the same component, asked for the same on the same machine, was not measured alike
ONE_PROCESS = "of one process"  # what the interval of a single run is

ASKED = of_role(schema.SUBJECT, schema.STEP, schema.ASKED, schema.OPTIONS, schema.MACHINE, schema.CODE)
LOOKUP = ("table", *(name for name, key in schema.KEYS.items() if key.partition(".")[0] == "lookup"))
PREEMPTED, UNSTEADY, SLOWER = "preempted", "not steady", f"more than {FACTOR:g} times as long as in another run"


def disturbed(rows: pd.DataFrame) -> pd.Series[str]:
    """Why each row is not to be trusted: preempted often, not steady, or more than twice as long as another of these
    runs took for the same component and the same work; "" where nothing is known against it, or it has no time.

    Args:
        rows: of one campaign, as `load_results` returns them.
    """
    plain = rows.reset_index(drop=True)
    why = {PREEMPTED: _preempted(plain), UNSTEADY: plain["steady"].eq(False), SLOWER: _slower(plain)}
    measured = plain["status"] == OK
    held = zip(*(holds & measured for holds in why.values()), strict=True)
    reasons = [", ".join(name for name, holds in zip(why, each, strict=True) if holds) for each in held]
    return pd.Series(reasons, rows.index, dtype=str)


def disturbance(rows: pd.DataFrame) -> str:
    """How many times were disturbed, of which cases and why; "" if none was."""
    reasons = disturbed(rows)
    found = reasons[reasons != ""]
    if found.empty:
        return ""
    cases = _counts(rows.loc[reasons != "", "case"])
    why = _counts(found.str.split(", ").explode())
    were = "was" if len(found) == 1 else "were"
    return f"{len(found)} of {(rows['status'] == OK).sum()} times {were} disturbed: {cases} ({why})"


def _counts(values: pd.Series[Any]) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in values.value_counts().items())


def _number(values: pd.Series[Any]) -> pd.Series[float]:
    return pd.to_numeric(values, errors="coerce")


def _preempted(rows: pd.DataFrame) -> pd.Series[bool]:
    switches, samples = _number(rows["preempted"]), _number(rows["iterations"])
    calls = rows["graph_calls"].mask(rows["case"].isin(IN_SERIES), rows["steps_per_sample"])
    calls = _number(calls).fillna(1).clip(lower=1)  # of a sample, whose times are of one
    seconds = samples * calls * _number(rows["wall_ms_mean"]) / 1e3
    threads = _number(rows["threads"]).fillna(1)
    return is_disturbed(switches, samples, seconds, threads)


def _slower(rows: pd.DataFrame) -> pd.Series[bool]:
    """Whether a row took more than twice as long as the fastest of its like. Stages on the device have a time by its
    events, others have none: so those of one component in two places are not alike."""
    on_device = _number(rows["device_ms_median"]).notna().rename("on_device")
    slower = pd.Series(False, rows.index)
    for case, part in rows[rows["status"] == OK].groupby("case"):
        names = varying(part, dict.fromkeys([*ASKED, *_parts(str(case), part)]))
        like = part.groupby([*(part[name] for name in names), on_device[part.index]], dropna=False)
        ms = part["wall_ms_median"]
        slower[part.index] = ms > FACTOR * like["wall_ms_median"].transform("min")
    return slower


def _parts(case: str, rows: pd.DataFrame) -> tuple[str, ...]:
    """Columns of the component that a case times."""
    if case == "lookup":
        return LOOKUP
    if case in UPLOADS:
        return ("upload",)
    return (case,) if case in rows and case not in WHOLES else ("strategy", *WAYS)
