"""Measures where an Engram table and its steps should live."""

from typing import Any

__all__ = ["load_results", "load_samples"]


def __getattr__(name: str) -> Any:  # pandas is loaded by whoever reads results, not by `run.py --help`
    if name in __all__:
        from engram_exp import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
