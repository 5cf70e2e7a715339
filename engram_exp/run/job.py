"""One run as it is handed from the process that composes configurations to the one that measures."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import cases_of
from engram_exp.machine.files import write_text
from engram_exp.results.load import DAMAGES, whole_run
from engram_exp.results.schema import RESULTS, SAMPLES
from engram_exp.results.write import SAMPLES_SO_FAR
from engram_exp.run.fingerprint import GROUP_COLUMNS, SAYS_NOTHING, measured
from engram_exp.run.overridden import overridden

FILE = "job.yaml"


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
        fingerprint: of settings, files, code and machine, as `fingerprint` makes it.
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
        now = _now()
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
            overridden=overridden(measured(resolved), choices, overrides),
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
        write_text(Path(self.folder) / FILE, OmegaConf.to_yaml(OmegaConf.create(plain)))

    def begun(self) -> Job:
        """This job as it is begun now: what an earlier run has left in its folder is gone."""
        for left_over in (RESULTS, SAMPLES, SAMPLES_SO_FAR):
            (Path(self.folder) / left_over).unlink(missing_ok=True)
        begun = replace(self, started_at=_now().isoformat(timespec="seconds"))
        begun.save()
        return begun

    def as_begun(self) -> Job:
        """This job as its worker has begun it, if it has: then, and not when it was handed over."""
        try:
            saved = Job.load(Path(self.folder))
        except Exception:  # the folder has gone, or what is in it cannot be read
            return self
        return saved if saved.run_id == self.run_id else self

    def statuses(self) -> set[str]:
        """Statuses of the rows that this run has left; none before that. What an earlier one left in the folder, and
        nobody can remove, does not count."""
        try:
            return {row["status"] for row in whole_run(Path(self.folder)) if row["run_id"] == self.run_id}
        except DAMAGES:
            return set()

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases to time: each becomes a row, whatever happens."""
        return cases_of(self.config)

    @property
    def command(self) -> str:
        """That runs this configuration again."""
        return shlex.join(["python", "run.py", *self.overrides])


def under_way(jobs: Sequence[Job]) -> Job:
    """Of jobs that are done one behind the other, the first that has left no rows."""
    return next((job for job in jobs if not job.statuses()), jobs[-1])


def _now() -> datetime:
    return datetime.now(timezone.utc)
