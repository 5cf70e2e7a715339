"""Writing what a run, or a sweep, leaves behind."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_exp.machine.files import write_text
from engram_exp.results.integrity import DIGESTS, digest
from engram_exp.results.load import frame_of, gather
from engram_exp.results.schema import COLUMNS, ENVIRONMENT, RESULTS, SAMPLE_COLUMNS, SAMPLES, SCHEMA_VERSION, SWEEP

if TYPE_CHECKING:
    import pandas as pd


def write_run(
    folder: Path,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    samples: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """Write what a run leaves behind, its results last: where they stand, the rest does.

    Args:
        folder: of the run.
        record: of machine and command; it gets the digests of the other files.
        rows: one per case; columns that a row does not have stay empty.
        samples: every timed iteration; None: no such file.
    """
    texts = {RESULTS: _text(COLUMNS, ({"schema_version": SCHEMA_VERSION, **row} for row in rows))}
    if samples is not None:
        texts = {SAMPLES: _text(SAMPLE_COLUMNS, samples), **texts}
    digests = {name: digest(text.encode()) for name, text in texts.items()}
    write_text(folder / ENVIRONMENT, json.dumps({**record, DIGESTS: digests}, indent=1))
    for name, text in texts.items():
        write_text(folder / name, text)


def write_sweep(folder: Path) -> pd.DataFrame:
    """Gather all runs below a folder into its `sweep.csv`, and return them."""
    text = gather(folder, RESULTS, COLUMNS)
    write_text(folder / SWEEP, text)
    return frame_of(text, COLUMNS)


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """One line and a short number per cell: a line of the file is a row of the table."""
    if isinstance(value, float):
        return f"{value:.9g}"
    return " ".join(value.split()) if isinstance(value, str) else value
