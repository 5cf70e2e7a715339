"""Loading what many runs left behind into one DataFrame."""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engram_exp.results.integrity import check_digest, check_row, digests_in
from engram_exp.results.schema import (
    COLUMNS,
    COLUMNS_OF,
    ENVIRONMENT,
    NUMBER_COLUMNS,
    PUBLISHED,
    RESULTS,
    SAMPLE_COLUMNS,
    SAMPLES,
    SCHEMA_VERSION,
    TEXT_COLUMNS,
    TRUTH_COLUMNS,
)

if TYPE_CHECKING:
    import pandas as pd


FIRST_WITH_FUSION = 4  # version of the schema; before, every layer ended with keys and value ...
FIRST_WITH_PAUSE = 5  # ... until this one, calls followed each other at once ...
FIRST_WITH_DECODER = 6  # ... and until this one, a layer was timed alone, and with nothing beside it ...
FIRST_WITH_RANKS = 7  # ... and until this one, on one rank ...
FIRST_WITH_NODES = 10  # ... and until this one, on one host ...
FIRST_WITH_GRAPHS = 11  # ... and until this one, each call launched by itself ...
FIRST_WITH_STEPS = 12  # ... and until this one, options told the steps of a sample, unless they were ...
STEPS_BEFORE, STEPS_OPTION = 4, r"(?:^| )steps_per_sample=(\d+)"  # ... so many, as by default
TRAFFIC = ("host_load", "link_load_gb_per_s", "link_load_block_kib")
DAMAGES = (OSError, EOFError, zlib.error, ValueError, csv.Error)  # what a file that is not whole may raise


class LeftOutWarning(UserWarning):
    """A file, or rows of it, that are not loaded, and why."""


class UncheckedWarning(UserWarning):
    """Files that are loaded although nothing says whether they are what their runs wrote."""


def load_results(path: str | Path) -> pd.DataFrame:
    """Load every run below a folder, one row per case.

    Args:
        path: a `results.csv`, the folder of a run, or any folder of runs. Published campaigns in a folder `reference`
            below it do not mix with one's own: to load them, name that folder.

    Returns:
        Columns as `COLUMNS`; empty texts are "", other empty values NaN. A file that is damaged, cut, edited or of an
        unknown schema is named in a `LeftOutWarning` and left out; of a run that is there twice, so is the copy. Runs
        without a readable `environment.json`, which holds their digests, are counted in an `UncheckedWarning`.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    frame = _load(Path(path), RESULTS, COLUMNS)
    copies = frame.duplicated(["run_id", "case"])
    if copies.any():
        text = f"{copies.sum()} rows are left out: copies of runs that are there already"
        warnings.warn(text, LeftOutWarning, stacklevel=2)
    row_bytes = frame["row_bytes"].fillna(frame["table_bytes"] / frame["used_rows"])  # as the first schema had it
    fusion = frame["fusion"].mask(frame["schema_version"] < FIRST_WITH_FUSION, "none")
    pause_ms = frame["pause_ms"].mask(frame["schema_version"] < FIRST_WITH_PAUSE, 0.0)
    alone = frame["schema_version"] < FIRST_WITH_DECODER
    traffic = {name: frame[name].mask(alone, 0.0) for name in TRAFFIC}
    decoder = frame["decoder"].mask(alone, "none")
    ranks = frame["ranks"].mask(frame["schema_version"] < FIRST_WITH_RANKS, 1)
    nodes = frame["nodes"].mask(frame["schema_version"] < FIRST_WITH_NODES, 1)
    graph_calls = frame["graph_calls"].mask(frame["schema_version"] < FIRST_WITH_GRAPHS, 0)
    traffic |= {"decoder": decoder, "ranks": ranks, "nodes": nodes, "graph_calls": graph_calls}
    steps = frame["options"].str.extract(STEPS_OPTION, expand=False).astype(float).fillna(STEPS_BEFORE)
    steps = frame["steps_per_sample"].mask(frame["schema_version"] < FIRST_WITH_STEPS, steps.where(decoder != "none"))
    options = frame["options"].str.replace(STEPS_OPTION, "", regex=True).str.strip()
    traffic |= {"steps_per_sample": steps, "options": options}
    plain = ~frame["options"].str.contains(r"\bstrategy\.", regex=True)  # as the strategy's file has it
    strategy = frame["strategy"].mask(plain, frame["strategy"].map(_without_repeated))
    told = frame.assign(row_bytes=row_bytes, fusion=fusion, pause_ms=pause_ms, strategy=strategy, **traffic)
    return told[~copies].reset_index(drop=True)


def _without_repeated(strategy: str) -> str:
    """A strategy without those of layers that are the run's own, `uva strategies.14=uva`, which earlier rows tell."""
    chosen, *own = strategy.split(" ")
    return " ".join([chosen, *(each for each in own if not each.endswith(f"={chosen}"))])


def load_samples(path: str | Path) -> pd.DataFrame:
    """Load every timed iteration of all runs below a folder; `run_id` and `case` tell them apart. Files may be gzipped.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    return _load(Path(path), SAMPLES, SAMPLE_COLUMNS)


def _load(path: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return frame_of(gather(path, name, columns), columns)


def frame_of(text: str, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    kept_as_text = {column: str for column in columns if column in TEXT_COLUMNS}
    frame = pd.read_csv(io.StringIO(text), dtype=kept_as_text, low_memory=False)
    return frame.fillna(dict.fromkeys(kept_as_text, ""))


def gather(path: Path, name: str, columns: Sequence[str]) -> str:
    """One CSV text of all files of that name that are whole, run 10 of a sweep behind run 9."""
    parts = [",".join(columns) + "\n"]
    found = [file for packed in ("", ".gz") for file in path.rglob(name + packed)]
    found = [file for file in found if PUBLISHED not in file.relative_to(path).parts]
    unchecked = []
    for file in [path] if path.is_file() else sorted(found, key=_natural_order):
        try:
            body, is_checked = _whole(file, columns)
            parts.append(body)
            unchecked += [] if is_checked else [file]
        except DAMAGES as error:
            warnings.warn(f"{file} is left out: {error}", LeftOutWarning, stacklevel=4)
    if unchecked:
        runs = f"{len(unchecked)} unchecked run{'s' if len(unchecked) > 1 else ''}"
        text = f"{runs}: no readable {ENVIRONMENT} beside the results, as in {unchecked[0].parent}"
        warnings.warn(text, UncheckedWarning, stacklevel=4)
    return "".join(parts)


def whole_run(folder: Path) -> list[dict[str, str]]:
    """The rows of the run in a folder, if the loader takes its results and, where it has any, its samples.

    Raises:
        OSError, EOFError, zlib.error, ValueError, csv.Error: a file is damaged, cut, edited, or missing where the run's
            record names it.
    """
    body, _ = _whole(_packed_or_not(folder / RESULTS), COLUMNS)
    samples, record = _packed_or_not(folder / SAMPLES), folder / ENVIRONMENT
    if SAMPLES in (digests_in(record) or ()):
        check_digest(_read(samples), SAMPLES, record)  # what agrees with its digest need not be parsed
    elif samples.exists():
        _whole(samples, SAMPLE_COLUMNS)
    return list(csv.DictReader(io.StringIO(body), COLUMNS))


def has_results(folder: Path) -> bool:
    """Whether a run has left results in a folder, packed or not."""
    return _packed_or_not(folder / RESULTS).exists()


def statuses_of(folder: Path) -> set[str]:
    """Statuses of the rows of the run in a folder; none unless it is whole."""
    try:
        return {row["status"] for row in whole_run(folder)}
    except DAMAGES:
        return set()


def _packed_or_not(file: Path) -> Path:
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.exists() and not file.exists() else file


def _whole(file: Path, columns: Sequence[str]) -> tuple[str, bool]:
    """The lines below a file's header, and whether there is a record that it agrees with."""
    content = _read(file)
    is_checked = check_digest(content, file.name.removesuffix(".gz"), file.with_name(ENVIRONMENT))
    return _body(content.decode("utf-8"), columns), is_checked


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(piece) if piece.isdecimal() else 0, piece) for piece in re.split(r"(\d+)", str(path))]


def _body(text: str, columns: Sequence[str]) -> str:
    """The lines below the header, if the file is whole; columns that its schema did not have yet are empty.

    Raises:
        ValueError: saying what is wrong with it.
    """
    header, _, body = text.partition("\n")
    known = COLUMNS_OF if columns is COLUMNS else {SCHEMA_VERSION: columns}
    version = next((version for version, names in known.items() if header.split(",") == list(names)), None)
    if version is None:
        raise ValueError("its header is not the one of this schema")
    if body and not body.endswith("\n"):
        raise ValueError("its last line is cut")
    if not body and columns is COLUMNS:
        raise ValueError("it holds no rows")
    rows = list(csv.reader(io.StringIO(body)))
    if len(rows) != body.count("\n"):
        raise ValueError("a quotation mark spans several lines")
    numbers = NUMBER_COLUMNS.intersection(known[version])
    for number, row in enumerate(rows, start=2):
        if len(row) != len(known[version]):
            raise ValueError(f"line {number} has {len(row)} fields instead of {len(known[version])}")
        if columns is not COLUMNS:
            continue
        if row[0] != str(version):
            raise ValueError(f"line {number} has the schema version {row[0]!r}, not {version}")
        try:
            check_row(dict(zip(known[version], row, strict=True)), numbers, TRUTH_COLUMNS)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return body.replace("\n", "," * (len(columns) - len(known[version])) + "\n")
