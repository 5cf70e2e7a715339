"""The rows that advice is given from: those of one subject, and what they tell of its model."""

from __future__ import annotations

import pandas as pd

from engram_exp.analysis.exposed_rows import tell_exposed
from engram_exp.analysis.subjects import ABOUT, about_of, listed, spelled
from engram_exp.vocabulary import FULL, OK

ASKED = {"model": "model", "dtype": "dtype", "ids": "tokens"}  # what one asks for, and its column
LAYERS, ENGRAM_LAYERS = "layers", "engram_layers"
LAYERS_BEFORE_THE_COLUMN = {"demo": 2, "deepseek_v41_flash": 2}  # with a table, in rows that do not tell it
NOTHING = "the data hold no measured `full`, nor a `step` beside a `ready`"


class AdviceError(ValueError):
    """Data that give no advice, and why."""


def measured(frame: pd.DataFrame, **asked: str | None) -> pd.DataFrame:
    """The rows that advice is given from and that have what is asked for: measured ones of `full`, and those of `step`
    that tell what is exposed.

    Args:
        frame: rows as `load_results` returns them.
        asked: values by the keys of `ASKED`; None: any.

    Raises:
        AdviceError: there are none.
    """
    full = (frame["status"] == OK) & (frame["case"] == FULL)
    good = frame[full | tell_exposed(frame)]
    if good.empty:
        raise AdviceError(NOTHING)
    for key, wanted in asked.items():
        values = good[ASKED[key]]
        if wanted is not None and wanted not in set(values):
            raise AdviceError(f"{key}={wanted}: not measured; the data hold {listed(values)}")
        good = good if wanted is None else good[values == wanted]
    return good


def one_subject(frame: pd.DataFrame, model: str, dtype: str | None, ids: str | None) -> pd.DataFrame:
    """The rows of one subject that advice is given from."""
    good = measured(frame, model=model, dtype=dtype, ids=ids)
    for key, column in ASKED.items():
        if good[column].nunique() > 1:
            raise AdviceError(f"{key}: the data hold {listed(good[column])}; choose one")
    if set(good["device"]) == {"cpu"}:
        raise AdviceError(
            "device=cpu in all of these runs: where the CPU stands in for an accelerator, no time says what a server "
            "with one should do; measure on a machine that has one (hardware=cuda)"
        )
    about = about_of(good)
    for column in ABOUT:
        texts = about[column].map(spelled)
        if texts.nunique() > 1:
            raise AdviceError(
                f"{column}: the data hold {listed(texts)}; keep the rows of one (--only {column}=VALUE does)"
            )
    return good


def lookups_like(frame: pd.DataFrame, good: pd.DataFrame) -> pd.DataFrame:
    """Measured lookups of the same subject."""
    lookups = frame[(frame["status"] == OK) & (frame["case"] == "lookup")]
    about, subject = about_of(lookups)[[*ABOUT]], about_of(good)[[*ABOUT]].iloc[0]
    return lookups[((about == subject) | (about.isna() & subject.isna())).all(axis=1)]


def layers_of(good: pd.DataFrame) -> tuple[int, list[str]]:
    """How many layers have a table, of the decoder or else of the model: as the rows tell it or, where they do not yet,
    by its name; notes."""
    if beside := str(good[ENGRAM_LAYERS].iloc[0]):
        return len(beside.split()), []
    told = sorted(good[LAYERS].dropna().unique()) if LAYERS in good else []
    if len(told) > 1:
        raise AdviceError(f"{LAYERS}: the data hold {listed(map(spelled, told))}; keep the rows of one")
    if told:
        return int(told[0]), []
    model = good["model"].iloc[0]
    if model in LAYERS_BEFORE_THE_COLUMN:
        return LAYERS_BEFORE_THE_COLUMN[model], []
    return 1, [f"how many layers of {model} have a table is not told: counted as one"]
