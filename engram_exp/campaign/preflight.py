"""Refuses a run, or a whole sweep, before any of it is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any, ClassVar

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from engram_exp.config.checks import check
from engram_exp.config.derived import ranks_per_node
from engram_exp.errors import ConfigError
from engram_exp.results.schema import RESULTS

EXIT_REFUSED = 2


class Preflight(Callback):
    """Checks every configuration that Hydra is about to run.

    Hydra turns an exception in a callback into a warning; `SystemExit` is none, and ends the program.

    sweep_dir: the folder of a sweep that was found sound; a launcher may take its runs to other processes.
    reports: whether it ends with a page.
    began: when that was, as the file system of the folder has it: seconds since the epoch.
    """

    sweep_dir: ClassVar[Path | None] = None
    began: ClassVar[float] = 0.0
    reports: ClassVar[bool] = False

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the one configuration."""
        self._refuse_unless_sound(lambda: [config], Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every configuration of the sweep."""
        sweep_dir = Path(config.hydra.sweep.dir)
        here = config.hydra.launcher._target_.endswith(".BasicLauncher")  # others may take runs to another machine
        Preflight.began = self._refuse_unless_sound(
            lambda: _configurations_of(config), sweep_dir, here=here, launcher=config.hydra.launcher
        )
        Preflight.sweep_dir, Preflight.reports = sweep_dir, config.report

    def _refuse_unless_sound(
        self,
        configurations: Callable[[], list[DictConfig]],
        output_dir: Path,
        *,
        here: bool = True,
        launcher: Mapping[str, Any] = MappingProxyType({}),
    ) -> float:
        try:
            workers = set()
            for config in configurations():
                workers.add(config.worker)
                if len(workers) > 1:
                    raise ConfigError("worker", config.worker, "is one for all of a sweep; two campaigns compare them")
                check(config, here=here)
                _check_launcher(config, launcher)
                if config.retry == "failed" and not any(output_dir.rglob(RESULTS)):
                    raise ConfigError("retry", "failed", f"{output_dir} holds no runs; name an earlier campaign")
            return _check_writable(output_dir)
        except Exception as error:  # Hydra would go on
            print(f"refused: {error}", file=sys.stderr)
            raise SystemExit(EXIT_REFUSED) from None


def _check_launcher(config: DictConfig, launcher: Mapping[str, Any]) -> None:
    """Refuse what a launcher does not ask for: nodes, and a GPU for each rank."""
    nodes, gpus, needed = launcher.get("nodes"), launcher.get("gpus_per_node"), ranks_per_node(config)
    if nodes is not None and config.nodes != nodes:
        remedy = f"the launcher asks for {nodes}; hydra.launcher.nodes={config.nodes} would do, for all of its runs"
        raise ConfigError("nodes", config.nodes, remedy)
    if gpus is not None and needed > gpus and config.hardware.device != "cpu":
        remedy = f"the launcher asks for {gpus} a node; hydra.launcher.gpus_per_node={needed} would do"
        raise ConfigError("ranks", config.ranks, f"each is a GPU of its own, and {remedy}")


def _configurations_of(sweep: DictConfig) -> list[DictConfig]:
    """What the sweep will run, composed as Hydra will compose it."""
    params = sweep.hydra.sweeper.params or {}
    overrides = [f"{key}={value}" for key, value in params.items()] + list(sweep.hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(overrides)
    latest = {override.key_or_group: override for override in parsed}.values()
    jobs = chain.from_iterable(BasicSweeper.split_arguments(list(latest), max_batch_size=None))
    searched = [text for text in sweep.hydra.overrides.hydra if text.startswith("hydra.searchpath")]
    return [compose(sweep.hydra.job.config_name, overrides=[*searched, *job]) for job in jobs]


def _check_writable(folder: Path) -> float:
    """When a file that is written there now was written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".writable-") as probe:  # of this call alone: others may look, too
            return os.fstat(probe.fileno()).st_mtime
    except OSError as error:
        raise ConfigError("output_dir", folder, f"cannot be written ({error.strerror})") from error
