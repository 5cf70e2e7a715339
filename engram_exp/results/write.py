"""Writing what a run, or a sweep, leaves behind."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_exp.machine.files import write_text
from engram_exp.results.integrity import DIGESTS, digest
from engram_exp.results.load import frame_of, gather
from engram_exp.results.schema import COLUMNS, ENVIRONMENT, RESULTS, SAMPLE_COLUMNS, SAMPLES, SCHEMA_VERSION, SWEEP

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SAMPLES_SO_FAR = f"{SAMPLES}.so_far"
EVERY_S = 1.0


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
        samples: every timed iteration; None: those that a `SampleFile` kept, if there are any.
    """
    texts = {RESULTS: _results(rows)}
    taken = _kept_samples(folder) if samples is None else _text(SAMPLE_COLUMNS, samples)
    if taken is not None:
        texts = {SAMPLES: taken, **texts}
    digests = {name: digest(text.encode()) for name, text in texts.items()}
    write_text(folder / ENVIRONMENT, json.dumps({**record, DIGESTS: digests}, indent=1))
    for name, text in texts.items():
        write_text(folder / name, text)
    (folder / SAMPLES_SO_FAR).unlink(missing_ok=True)


class SampleFile:
    """The samples of a run under way, for the case that it does not live to write them: they are appended to a file of
    another name, about once a second, and `write_run` puts the whole in its place.

    A file that cannot be written costs a warning, not the run.

    Args:
        folder: of the run; what an earlier run kept there is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAMPLES_SO_FAR
        self.path.unlink(missing_ok=True)
        self.flushed_s = -EVERY_S
        self.is_broken = False

    @property
    def is_due(self) -> bool:
        """Whether samples were last written long enough ago."""
        return time.monotonic() - self.flushed_s >= EVERY_S

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows of `SAMPLE_COLUMNS`. Call it between samples, when it `is_due`, never inside of one."""
        rows = list(rows)
        if self.is_broken or not rows:
            return  # still due: the first samples of a run are written at once
        self.flushed_s = time.monotonic()
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                text = _text(SAMPLE_COLUMNS, rows)
                file.write(text.partition("\n")[2] if file.tell() else text)
        except OSError as error:
            self.is_broken = True  # behind half a line nothing can be told apart
            log.warning("samples would be lost if the run were killed now: %s", error)


def _kept_samples(folder: Path) -> str | None:
    """The whole lines that a `SampleFile` left; None if there is no sample."""
    try:
        text = (folder / SAMPLES_SO_FAR).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    whole = text[: text.rfind("\n") + 1]
    return whole if whole.count("\n") > 1 else None


def write_sweep(folder: Path, unwritten: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Gather all runs below a folder, and rows that could not be written, into its `sweep.csv`, and return them.

    Raises:
        OSError: it cannot be written.
    """
    text = _sweep(folder, unwritten)
    write_text(folder / SWEEP, text)
    return frame_of(text, COLUMNS)


def gather_sweep(folder: Path, unwritten: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """What `write_sweep` returns, without writing it."""
    return frame_of(_sweep(folder, unwritten), COLUMNS)


def _sweep(folder: Path, unwritten: Sequence[Mapping[str, Any]]) -> str:
    return gather(folder, RESULTS, COLUMNS) + _results(unwritten).partition("\n")[2]


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
    return _text(COLUMNS, ({"schema_version": SCHEMA_VERSION, **row} for row in rows))


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
