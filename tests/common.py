"""What tests of every folder share and what needs no PyTorch: paths, golden vectors, small geometries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from engram_exp.layer.geometry import EngramGeometry

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
H200 = ROOT / "outputs/reference/h200"

TINY = (  # a model whose runs take milliseconds
    "model.heads=2", "model.vocab_per_order=[50,70]", "model.row_values=8", "model.hidden_size=16", "model.hc_mult=2",
    "batch_size=2", "seq_len=12", "tokens=random", "iterations=3", "budget_s=1", "hardware=cpu", "limits=none",
    "batches=4",
)  # fmt: skip


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def demo_geometry(**changes: object) -> EngramGeometry:
    demo = EngramGeometry(
        layers=(1, 15), layer=1, orders=(2, 3), heads=8, vocab_per_order=(646400, 646400), row_values=64,
        hidden_size=1024, hc_mult=4, bias=True, norm_eps=float(np.finfo(np.float32).eps),
    )  # fmt: skip
    return replace(demo, **changes)


def runs(tmp_path: Path) -> list[Path]:
    """Folders of the runs that `call` left."""
    return sorted(path.parent for path in (tmp_path / "out").rglob("job.yaml"))
