"""The schema of what a run leaves behind: writing it, and loading many runs into one DataFrame."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_exp.results.integrity import DIGESTS, check_digest, check_row, digest

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
RESULTS, SAMPLES, SWEEP, ENVIRONMENT = "results.csv", "samples.csv", "sweep.csv", "environment.json"

PUBLISHED = "reference"

OK, SKIPPED, REFUSED = "ok", "skipped", "refused"
MISMATCH, OOM_HOST, OOM_DEVICE, TIMEOUT, CRASH = "mismatch", "oom_host", "oom_device", "timeout", "crash"
SUCCESSES = (OK, SKIPPED)

IDENTITY_COLUMNS = ("schema_version", "run_id", "status", "error")
CONFIG_COLUMNS = (
    "strategy", "model", "layer", "dtype", "batch_size", "seq_len", "tokens", "hashing", "lookup", "projection",
    "hardware", "device", "experiment", "components", "table", "upload", "shape", "history", "threads", "seed",
    "batches", "table_scale", "true_rows", "used_rows",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "iterations", "stop_reason", "steady",
    "wall_ms_median", "wall_ms_lo", "wall_ms_hi", "wall_ms_min", "wall_ms_mean", "wall_ms_max", "wall_ms_p95",
    "wall_ms_p99", "device_ms_median", "enqueue_ms_median",
    "bytes_moved", "gb_per_s", "flops", "tflop_per_s", "rows_per_s", "tokens_per_s",
    "limit_ms", "limit_by", "efficiency",
    "table_bytes", "peak_device_bytes", "peak_host_bytes", "pinned_bytes", "unique_row_fraction",
)  # fmt: skip
STAMP_COLUMNS = (
    "git_sha", "git_dirty", "torch_version", "device_name", "driver", "cpu_name", "host", "started_at",
)  # fmt: skip
COLUMNS_OF_VERSION_1 = (*IDENTITY_COLUMNS, *CONFIG_COLUMNS, *CASE_COLUMNS, *STAMP_COLUMNS)
SCHEDULE_COLUMNS = (
    "schedule", "chunk_tokens", "ring_depth", "capture", "row_order", "rows_per_program", "warps", "programs", "layout",
    "row_bytes", "repeat",
)  # fmt: skip
COLUMNS = (*COLUMNS_OF_VERSION_1, *SCHEDULE_COLUMNS, "huge_page_share")
COLUMNS_OF = {1: COLUMNS_OF_VERSION_1, 2: COLUMNS}
SAMPLE_COLUMNS = ("run_id", "case", "iteration", "order", "wall_ms", "device_ms", "enqueue_ms")
TEXT_COLUMNS = {
    "run_id", "status", "error", "strategy", "model", "dtype", "tokens", "hashing", "lookup", "projection", "hardware",
    "device", "experiment", "components", "table", "upload", "shape", "case", "stop_reason", "limit_by", "git_sha",
    "torch_version", "device_name", "driver", "cpu_name", "host", "started_at", "schedule", "capture", "row_order",
    "layout",
}  # fmt: skip
TRUTH_COLUMNS = {"history", "steady", "git_dirty"}
NUMBER_COLUMNS = set(COLUMNS) - TEXT_COLUMNS - TRUTH_COLUMNS


class LeftOutWarning(UserWarning):
    """A file, or rows of it, that are not loaded, and why."""


class UncheckedWarning(UserWarning):
    """Files that are loaded although nothing says whether they are what their runs wrote."""


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
    text = _gather(folder, RESULTS, COLUMNS)
    write_text(folder / SWEEP, text)
    return _frame(text, COLUMNS)


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that half a file never counts."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


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
    return frame.assign(row_bytes=row_bytes)[~copies].reset_index(drop=True)


def load_samples(path: str | Path) -> pd.DataFrame:
    """Load every timed iteration of all runs below a folder; `run_id` and `case` tell them apart. Files may be gzipped.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    return _load(Path(path), SAMPLES, SAMPLE_COLUMNS)


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


def _load(path: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _frame(_gather(path, name, columns), columns)


def _frame(text: str, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    kept_as_text = {column: str for column in columns if column in TEXT_COLUMNS}
    frame = pd.read_csv(io.StringIO(text), dtype=kept_as_text, low_memory=False)
    return frame.fillna(dict.fromkeys(kept_as_text, ""))


def _gather(path: Path, name: str, columns: Sequence[str]) -> str:
    """One CSV text of all files of that name that are whole, run 10 of a sweep behind run 9."""
    parts = [",".join(columns) + "\n"]
    found = [file for packed in ("", ".gz") for file in path.rglob(name + packed)]
    found = [file for file in found if PUBLISHED not in file.relative_to(path).parts]
    unchecked = []
    for file in [path] if path.is_file() else sorted(found, key=_natural_order):
        try:
            content = _read(file)
            is_checked = check_digest(content, file.name.removesuffix(".gz"), file.with_name(ENVIRONMENT))
            parts.append(_body(content.decode("utf-8"), columns))
            unchecked += [] if is_checked else [file]
        except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
            warnings.warn(f"{file} is left out: {error}", LeftOutWarning, stacklevel=4)
    if unchecked:
        runs = f"{len(unchecked)} unchecked run{'s' if len(unchecked) > 1 else ''}"
        text = f"{runs}: no readable {ENVIRONMENT} beside the results, as in {unchecked[0].parent}"
        warnings.warn(text, UncheckedWarning, stacklevel=4)
    return "".join(parts)


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
