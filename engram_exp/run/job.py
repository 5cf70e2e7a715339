"""One run as it is handed from the process that composes configurations to the one that measures."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import batches_of, cases_of, chunk_tokens_of, geometry_of, threads_of
from engram_exp.machine.environment import code_digest, gpus, machine
from engram_exp.results.schema import CHOICE, KEYS, RESULTS, of_kind
from engram_exp.run.overridden import as_text, overridden
from engram_exp.steps.lookup.order import row_order

FILE = "job.yaml"
SAYS_NOTHING = (  # of what a run measures
    "output_dir", "cache_dir", "limits_dir", "campaign", "repeats", "resume", "retry", "worker", "timeout_s",
)  # fmt: skip
GROUP_COLUMNS = of_kind(CHOICE)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Args:
        run_id: unique among all runs.
        folder: where the run leaves its files.
        started_at: UTC, ISO 8601.
        choices: the option chosen in each group.
        config: without interpolations.
        repeat: which repetition of its configuration it is, from 0.
        fingerprint: of configuration, repetition, machine and code.
        overrides: what the command line, or a sweep, set.
        overridden: the values of the configuration that the chosen options do not give by themselves, by key.
    """

    run_id: str
    folder: str
    started_at: str
    choices: dict[str, str | None]
    config: DictConfig
    repeat: int = 0
    fingerprint: str = ""
    overrides: tuple[str, ...] = ()
    overridden: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        config: DictConfig,
        choices: Mapping[str, str | None],
        folder: Path,
        *,
        repeat: int = 0,
        fingerprint: str = "",
        overrides: Sequence[str] = (),
    ) -> Job:
        """A job for a composed configuration."""
        now = datetime.now(timezone.utc)
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        assert isinstance(resolved, DictConfig)
        return cls(
            run_id=f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}",
            folder=str(folder),
            started_at=now.isoformat(timespec="seconds"),
            choices={group: choices.get(group) for group in GROUP_COLUMNS},
            config=resolved,
            repeat=repeat,
            fingerprint=fingerprint,
            overrides=tuple(text for text in overrides if text.lstrip("+").partition("=")[0] not in SAYS_NOTHING),
            overridden=overridden(_measured(resolved), choices, overrides),
        )

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job that `save` wrote into a folder."""
        loaded = OmegaConf.load(folder / FILE)
        plain: Any = OmegaConf.to_container(loaded)
        return cls(**{**plain, "config": OmegaConf.create(plain["config"])})

    def save(self) -> None:
        """Write the job into its folder."""
        plain = {**{k: v for k, v in asdict(self).items() if k != "config"}, "config": self.config}
        OmegaConf.save(OmegaConf.create(plain), Path(self.folder) / FILE)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases to time: each becomes a row, whatever happens."""
        return cases_of(self.config)

    @property
    def command(self) -> str:
        """That runs this configuration again."""
        return shlex.join(["python", "run.py", *self.overrides])

    def columns(self) -> dict[str, Any]:
        """The columns of a row that are known before the run."""
        config = self.config
        known = {
            "run_id": self.run_id,
            **{group: choice or "" for group, choice in self.choices.items()},
            "layer": config.layer,
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "history": config.tokens.get("history"),
            "threads": threads_of(config),
            "seed": config.seed,
            "repeat": self.repeat,
            "batches": batches_of(config),
            "table_scale": config.model.table_scale,
            "layers": len(config.model.layers),
            "chunk_tokens": chunk_tokens_of(config),
            "ring_depth": config.schedule.ring_depth,
            "capture": config.capture,
            **{name: config.lookup.get(key.removeprefix("lookup.")) for name, key in KEYS.items() if "lookup." in key},
            "row_order": self._row_order(),
            "row_bytes": geometry_of(config).row_bytes,
            "layout": config.dtype.layout if config.dtype.values_per_scale else "",
            "started_at": self.started_at,
        }
        return {**known, "options": as_text(self.overridden, known)}

    def _row_order(self) -> str:
        config, lookup = self.config, self.config.lookup
        if "sort_from_rows" not in lookup:  # it reads rows as they are asked for
            return ""
        rows = config.batch_size * config.seq_len * geometry_of(config).columns
        return row_order(lookup.order, rows, lookup.sort_from_rows, config.strategy.table)

    def failed_rows(self, status: str, error: str) -> list[dict[str, Any]]:
        """A row for every case of a run that gave none."""
        try:
            known = self.columns()
        except Exception:  # what is wrong with the configuration may be what a column is made of
            known = {"run_id": self.run_id, **self.choices, "started_at": self.started_at}
            known["options"] = as_text(self.overridden, known)
        return [{**known, "status": status, "error": error, "case": case} for case in self.cases]


def _measured(config: DictConfig) -> dict[str, Any]:
    """All that says something of what a run measures."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in plain.items() if key not in SAYS_NOTHING}


def fingerprint(config: DictConfig, choices: Mapping[str, str | None], repeat: int) -> str:
    """What two runs share if there is no need for the second: configuration, repetition, machine and code."""
    chosen = {group: choices.get(group) for group in GROUP_COLUMNS}
    alike = {**machine(), "host": None, "gpus": [gpu["name"] for gpu in gpus()]}  # nodes of a cluster may be
    text = json.dumps([_measured(config), chosen, repeat, alike, code_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_in(folder: Path) -> str | None:
    """The fingerprint of the run that left its job in a folder."""
    try:
        found = re.search(r"^fingerprint: '?(\w+)'?$", (folder / FILE).read_text(encoding="utf-8"), flags=re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def earlier_runs(*folders: Path) -> dict[str, set[str]]:
    """Statuses of the rows of every run below some folders, by fingerprint; of two equal ones, the later."""
    files = chain.from_iterable(folder.rglob(FILE) for folder in folders)
    runs = sorted(files, key=lambda file: file.stat().st_mtime)
    found = {fingerprint_in(file.parent): statuses_of(file.parent) for file in runs}
    return {mark: statuses for mark, statuses in found.items() if mark and statuses}


def statuses_of(folder: Path) -> set[str]:
    """Statuses of the rows in a folder's results; none where there are no results."""
    try:
        with (folder / RESULTS).open(encoding="utf-8", newline="") as file:
            return {row["status"] for row in csv.DictReader(file)}
    except OSError:
        return set()
