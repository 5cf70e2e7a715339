"""What an earlier call of the program left in the folders of a campaign."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from engram_exp.results.load import has_results, statuses_of
from engram_exp.results.schema import SUCCESSES
from engram_exp.run.job import FILE

PARTS = ("settings", "files", "code", "machines")  # of a fingerprint
MARK = re.compile(r"^fingerprint: '?([\w-]+)'?$", flags=re.MULTILINE)


def earlier_runs(*folders: Path) -> dict[str, set[str]]:
    """Statuses of the rows of every whole run below some folders, by fingerprint; of two equal ones, the later."""
    files = chain.from_iterable(folder.rglob(FILE) for folder in folders)
    runs = ((fingerprint_in(file.parent), statuses_of(file.parent)) for file in sorted(files, key=_changed_s))
    return {mark: statuses for mark, statuses in runs if mark and statuses}


def fingerprint_in(folder: Path) -> str | None:
    """The fingerprint of the run that left its job in a folder; None without one that can be read."""
    try:
        found = MARK.search((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found[1] if found else None


def failed_before(known: Mapping[str, set[str]], mark: str) -> bool:
    """Whether a run failed, or one whose files have been mended since."""
    if mark in known:
        return not known[mark].issubset(SUCCESSES)
    return any(_but_files(other) == _but_files(mark) and not known[other].issubset(SUCCESSES) for other in known)


def folder_for(folder: Path, mark: str) -> Path:
    """The folder, or one beside it where results of another run stand; what failed makes room for what is mended."""
    number, free = 1, folder
    while has_results(free) and not _makes_room(free, mark):
        number, free = number + 1, folder.with_name(f"{folder.name}-{number + 1}")
    return free


def _makes_room(folder: Path, mark: str) -> bool:
    there = fingerprint_in(folder)
    if there is None or _but_files(there) != _but_files(mark):
        return False
    statuses = statuses_of(folder)
    return there == mark or not (statuses and statuses.issubset(SUCCESSES))


def _but_files(mark: str) -> list[str]:
    parts = mark.split("-")
    return [part for name, part in zip(PARTS, parts, strict=True) if name != "files"] if _is_new(parts) else parts


def _is_new(parts: Sequence[str]) -> bool:
    return len(parts) == len(PARTS)  # not of an earlier version of the program


def others_in_words(known: Iterable[str], ours: Collection[str]) -> str:
    """Runs that are none of ours, counted by what is different about them; "" if there are none.

    Args:
        known, ours: fingerprints.
    """
    own = [{mark.split("-")[place] for mark in ours} for place in range(len(PARTS))]
    differing: Counter[str] = Counter()
    for mark in set(known).difference(ours):
        parts = mark.split("-")
        if not _is_new(parts):
            differing["code"] += 1
            continue
        differs = [name for name, part, known_parts in zip(PARTS, parts, own, strict=True) if part not in known_parts]
        differing.update(differs or PARTS[:1])  # each part is one of ours, but never all of them together
    return ", ".join(f"{name} ({differing[name]})" for name in PARTS if differing[name])


def _changed_s(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # it is gone, or was never more than a link to what is
        return 0.0
