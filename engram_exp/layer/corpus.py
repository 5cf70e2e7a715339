"""Text to take token ids from: what every CPython installation carries, or the user's own."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from engram_exp.errors import ConfigError

PIECE_CHARACTERS = 32_768  # documents are cut at line ends into pieces of about this size, tokenised in parallel
JSONL, JSONL_FIELD = ".jsonl", "text"


def read_pieces(path: str | None, max_bytes: int) -> list[str]:
    """Pieces of text, at most `max_bytes` (as UTF-8) in all.

    Args:
        path: a text file, a `.jsonl` file whose lines hold `text`, or a folder of both; None for the source and the
            documentation topics of Python's standard library.
        max_bytes: where to stop reading.

    Raises:
        ConfigError: the path does not exist, is not UTF-8 text, or holds no text.
    """
    documents = _standard_library() if path is None else _user_documents(Path(path).expanduser(), max_bytes)
    pieces: list[str] = []
    left = max_bytes
    for document in documents:
        for piece in _cut(document):
            encoded = piece.encode(errors="replace")[:left]
            pieces.append(encoded.decode(errors="ignore"))
            left -= len(encoded)
            if left <= 0:
                return pieces
    if not any(piece.strip() for piece in pieces):
        raise ConfigError("tokens.path", path, "holds no text")
    return pieces


def _cut(document: str) -> Iterator[str]:
    start = 0
    while start < len(document):
        end = document.find("\n", start + PIECE_CHARACTERS) + 1 or len(document)
        yield document[start:end]
        start = end


def _standard_library() -> Iterator[str]:
    """Prose first (the documentation topics), then modules in a fixed random order, so that a cut is a fair sample."""
    from pydoc_data.topics import topics

    yield "\n\n".join(topics[name] for name in sorted(topics))
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
    files = sorted(file for file in root.rglob("*.py") if skipped.isdisjoint(file.relative_to(root).parts))
    random.Random(0).shuffle(files)
    for file in files:
        yield file.read_text(encoding="utf-8", errors="replace")


def _user_documents(path: Path, max_bytes: int) -> Iterator[str]:
    if path.is_file():
        yield from _read(path, max_bytes)
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                yield from _read(file, max_bytes)
    else:
        raise ConfigError("tokens.path", path, "no such file or folder")


def _read(file: Path, max_bytes: int) -> Iterator[str]:
    if file.suffix == JSONL:
        for number, record in records(file):
            yield _text_of(record, file, number)
    else:
        with _opened(file) as lines:
            yield lines.read(max_bytes)


def records(file: Path) -> Iterator[tuple[int, Any]]:
    """What the lines of a JSONL file hold, with their numbers; empty lines are passed over.

    Raises:
        ConfigError: it cannot be read, or a line is no JSON.
    """
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError("tokens.path", file, f"line {number} is not JSON ({error.msg})") from error
                yield number, record


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise ConfigError("tokens.path", file, f"is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError("tokens.path", file, f"cannot be read ({error.strerror})") from error


def _text_of(record: Any, file: Path, number: int) -> str:
    text = record.get(JSONL_FIELD) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ConfigError("tokens.path", file, f"line {number} has no text under {JSONL_FIELD!r}")
    return text
