"""Measures where an Engram table and its steps should live."""

from importlib import import_module
from typing import Any

_HOMES = {
    "advise": "engram_exp.analysis.advice",
    "load_results": "engram_exp.results.load",
    "load_samples": "engram_exp.results.load",
    "compare": "engram_exp.analysis.compare",
    "compare_values": "engram_exp.analysis.compare",
    "report": "engram_exp.pages.report",
}
__all__ = ["advise", "compare", "compare_values", "load_results", "load_samples", "report"]


def __getattr__(name: str) -> Any:  # pandas is loaded by whoever reads results, not by `run.py --help`
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
