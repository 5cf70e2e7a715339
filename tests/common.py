"""What tests of every folder share and what needs no PyTorch: paths, golden vectors, small geometries."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, open_dict

from engram_exp.config.files import FileConfigSource
from engram_exp.config.schema import register_schema
from engram_exp.layer.geometry import EngramGeometry

ROOT = Path(__file__).resolve().parents[1]
CONF = str(ROOT / "conf")
GOLDEN = Path(__file__).parent / "golden"
H200 = ROOT / "outputs/reference/h200"

TINY = (  # a model whose runs take milliseconds
    "model.heads=2", "model.vocab_per_order=[50,70]", "model.row_values=8", "model.hidden_size=16", "model.hc_mult=2",
    "batch_size=2", "seq_len=12", "tokens=random", "iterations=3", "budget_s=1", "hardware=cpu", "limits=none",
    "batches=4",
)  # fmt: skip
# Of programs that tests start: two threads that share out a tiny matrix beside other tests mostly wait for each other.
ONE_THREAD = {"NUMBA_NUM_THREADS": "1"}  # which gives OpenMP as many


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """A configuration as the command line would make it, and its choices by group.

    Hydra takes a tenth of a second for what choices come to, so that each set of them is composed once; values are then
    set in a copy, by Hydra's own hand.
    """
    plain = not any(text.startswith(("+", "~", "hydra")) for text in overrides)
    chooses = [not plain or (ROOT / "conf" / text.partition("=")[0]).is_dir() for text in overrides]
    chosen = tuple(text for text, is_choice in zip(overrides, chooses, strict=True) if is_choice)
    found, choices = _of_choices(*chosen) if plain else _of_choices.__wrapped__(*chosen)
    config = copy.deepcopy(found)
    values = [text for text, is_choice in zip(overrides, chooses, strict=True) if not is_choice]
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config, dict(choices)


_load, _read = FileConfigSource.load_config, {}


def _read_once(source: FileConfigSource, config_path: str) -> ConfigResult:
    """A copy of what a file of this repository holds, which Hydra would parse for each set of choices."""
    if source.path != CONF:
        return _load(source, config_path)
    key = source.provider, config_path
    if key not in _read:
        _read[key] = _load(source, config_path)
    return copy.deepcopy(_read[key])


@cache
def _of_choices(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    register_schema()
    with (
        initialize_config_dir(version_base="1.3", config_dir=CONF),
        patch.object(FileConfigSource, "load_config", _read_once),
        # Made for each default, in case that it is interpolated: none is, and one would fail for want of it.
        patch("hydra._internal.defaults_list._create_interpolation_map"),
    ):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def demo_geometry(**changes: object) -> EngramGeometry:
    demo = EngramGeometry(
        layers=(1, 15), layer=1, orders=(2, 3), heads=8, vocab_per_order=(646400, 646400), row_values=64,
        hidden_size=1024, hc_mult=4, bias=True, norm_eps=float(np.finfo(np.float32).eps),
    )  # fmt: skip
    return replace(demo, **changes)


def runs(tmp_path: Path) -> list[Path]:
    """Folders of the runs that `call` left."""
    return sorted(path.parent for path in (tmp_path / "out").rglob("job.yaml"))
