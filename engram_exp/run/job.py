"""One run as it is handed from the process that composes configurations to the one that measures."""

from __future__ import annotations

import hashlib
import json
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from engram_exp.config.derived import (
    batches_of,
    capture_of,
    cases_of,
    chunk_tokens_of,
    decodes,
    engram_layers_of,
    exchanges,
    geometry_of,
    ids_of,
    order_of,
    reads_in_order,
    stages_of,
    threads_of,
)
from engram_exp.config.mixed import strategy_in_words
from engram_exp.errors import ConfigError
from engram_exp.layer.tokenizer import tokenizer_file
from engram_exp.machine.environment import code_digest, gpus, machine
from engram_exp.machine.files import content_digest, write_text
from engram_exp.machine.sources import contributed_sources
from engram_exp.results.load import DAMAGES, whole_run
from engram_exp.results.schema import CHOICE, KEYS, RESULTS, SAMPLES, of_kind
from engram_exp.results.write import SAMPLES_SO_FAR
from engram_exp.run.overridden import as_text, overridden
from engram_exp.vocabulary import AUTO, COLD, DEVICE, DISK, HALF_BESIDE, LOOKUP, MULTIPROCESSORS, OF_A_STEP

FILE = "job.yaml"
SAYS_NOTHING = (  # of what a run measures
    "output_dir", "cache_dir", "limits_dir", "campaign", "repeats", "resume", "retry", "worker", "timeout_s",
    "report", "rank_timeout_s", "rendezvous",
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

    def columns(self) -> dict[str, Any]:
        """The columns of a row that are known before the run."""
        config = self.config
        known = {
            "run_id": self.run_id,
            **{group: choice or "" for group, choice in self.choices.items()},
            "worker": config.worker,
            "layer": config.layer,
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
            "history": config.tokens.get("history"),
            "threads": threads_of(config),
            "seed": config.seed,
            "repeat": self.repeat,
            "batches": batches_of(config),
            "pause_ms": config.pause_ms,
            "graph_calls": config.graph_calls,
            "page_cache": config.cache_state if config.strategy.table == DISK else "",
            "queue_depth": config.lookup.get("queue_depth"),
            "block_bytes": config.lookup.get("block_bytes"),
            "hot_gb": config.lookup.get("hot_gb"),
            "host_load": config.host_load,
            "link_load_gb_per_s": config.link_load_gb_per_s,
            "link_load_block_kib": config.link_load_block_kib if config.link_load_gb_per_s else 0,
            "table_scale": config.model.table_scale,
            "layers": len(config.model.layers),
            "chunk_tokens": chunk_tokens_of(config),
            "ring_depth": config.schedule.ring_depth,
            "capture": capture_of(config),
            **self._step(),
            **self._ranks(),
            **self._reading(),
            "row_bytes": geometry_of(config).row_bytes,
            "layout": config.dtype.layout if config.dtype.values_per_scale else "",
            "started_at": self.started_at,
        }
        return {**known, "options": as_text(self.overridden, known)}

    def _step(self) -> dict[str, Any]:
        """What is asked of a model's step, if there is one."""
        if not decodes(self.config):
            return {}
        told = [name for name, key in KEYS.items() if key.startswith("prefetch.")]
        return {
            "engram_layers": " ".join(map(str, sorted(engram_layers_of(self.config)))),
            "ids": ids_of(self.config),
            **{name: OmegaConf.select(self.config, KEYS[name]) for name in (*told, "steps_per_sample")},
        }

    def _ranks(self) -> dict[str, Any]:
        """Which ranks there are, and how rows that they share out come."""
        config = self.config
        if config.ranks == 1:
            return {"ranks": 1, "nodes": 1, "exchange": ""}
        chosen = {"exchange": self.choices["exchange"], "split": config.table.split} if exchanges(config) else {}
        asked = {name: config[name] for name in ("ranks", "nodes", "rank_batches")}
        return {**asked, "exchange": "", **chosen}

    def case_columns(self, case: str) -> dict[str, Any]:
        """Of a step's cases: the strategies of its layers, if they differ; and of a file that is not cold, its state:
        rows from memory are no rows from a disk. Of those that are no stage on the device, are to find no row kept, or
        wait for the host: that they are in no graph of calls."""
        chosen, config = self.choices["strategy"] or "", self.config
        told = strategy_in_words(chosen, config) if case in OF_A_STEP else chosen
        is_usual = config.strategy.table != DISK or config.cache_state == COLD
        on_device = [stage.name for stage in stages_of(config) if stage.place == DEVICE and not stage.is_upload]
        # That the lookup waits for the host, its class says, which imports torch; here, that threads of the CPU gather.
        is_launched = case == LOOKUP.name and (config.lookup.get("state") == COLD or "threads" in config.lookup)
        return {
            "strategy": told if is_usual else f"{told} cache_state={config.cache_state}",
            "graph_calls": config.graph_calls if case in on_device and not is_launched else 0,
        }

    def _reading(self) -> dict[str, Any]:
        """How the lookup reads rows, as far as it is known before there are a table and a device."""
        if "sort_from_rows" in self.config.lookup and not reads_in_order(self.config):  # its kernel is not used
            return {}
        keys = {name: key.removeprefix("lookup.") for name, key in KEYS.items() if key.startswith("lookup.")}
        options = {name: self.config.lookup.get(key) for name, key in keys.items()}
        if not self.config.lookup.get("hot_gb", 1):  # no rows are kept in front of a file
            options |= {"cache_policy": None, "cache_state": None}
        known = {
            name: None if value in (AUTO, MULTIPROCESSORS, HALF_BESIDE) else value for name, value in options.items()
        }
        by_auto = " ".join(name for name, value in options.items() if value == AUTO)
        return {**known, "row_order": order_of(self.config), "by_auto": by_auto}

    def failed_rows(self, status: str, error: str) -> list[dict[str, Any]]:
        """A row for every case of a run that gave none."""
        of_case: dict[str, dict[str, Any]] = {}
        try:
            known, of_case = self.columns(), {case: self.case_columns(case) for case in self.cases}
        except Exception:  # what is wrong with the configuration may be what a column is made of
            known = {"run_id": self.run_id, **self.choices, "started_at": self.started_at}
            known["options"] = as_text(self.overridden, known)
        ended = {"status": status, "error": error}
        return [{**known, **of_case.get(case, {}), **ended, "case": case} for case in self.cases]


def under_way(jobs: Sequence[Job]) -> Job:
    """Of jobs that are done one behind the other, the first that has left no rows."""
    return next((job for job in jobs if not job.statuses()), jobs[-1])


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _measured(config: DictConfig) -> dict[str, Any]:
    """All that says something of what a run measures."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in plain.items() if key not in SAYS_NOTHING}


def fingerprint(config: DictConfig, choices: Mapping[str, str | None], repeat: int) -> str:
    """What two runs share if there is no need for the second, in four parts: settings, contents of the files that they
    name (components of others, too), code and machine."""
    told = _measured(config)
    chosen = {group: choices.get(group) for group in GROUP_COLUMNS}
    files = [*_named_files(config), *contributed_sources(_targets(told))]
    alike = {**machine(), "host": None, "gpus": [gpu["name"] for gpu in gpus()]}  # nodes of a cluster may be
    parts = [told, chosen, repeat], [content_digest(file) for file in files], code_digest(), alike
    return "-".join(map(_short_digest, parts))


def _named_files(config: DictConfig) -> list[Path]:
    """The files, or folders of them, that a run's tokens, and rows of its own, come from."""
    names = [config.tokens.get("path"), config.model.tokenizer, config.table.get("checkpoint")]
    profile = config.lookup.get("profile_path")
    names += [profile.replace("{layer}", str(config.layer))] if profile else []
    if names[1]:
        with suppress(ConfigError):  # the run will say so
            names[1] = tokenizer_file(names[1]) or names[1]
    return [Path(name).expanduser() for name in names if name]


def _targets(plain: Any) -> Iterator[str]:
    """The classes of all components, as the configuration names them."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _targets(value)
        elif key == "_target_":
            yield str(value)


def _short_digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
