"""The hash of a run's layer, and the tokenizer that it may follow from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from engram_exp.config.options import COMPRESSION, OF_HASH
from engram_exp.errors import ConfigError
from engram_exp.layer.compression import load_compression
from engram_exp.layer.hash_plan import Hash, HashPlan
from engram_exp.layer.tokenizer import TokenizerSource, open_tokenizer
from engram_exp.machine.environment import code_cache
from engram_exp.run.component import make
from engram_exp.run.plan import Plan


class LayerHash:
    """The constants of a layer's hash, the model's hash and its tokenizer, each made when it is asked for.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._run_plan = plan

    @cached_property
    def tokenizer(self) -> TokenizerSource:
        """The model's tokenizer.

        Raises:
            ConfigError: it has none, or it cannot be read.
        """
        name = self._run_plan.config.model.tokenizer
        if name is None:
            remedy = "the model has none, and text needs one; name one, or use tokens=random or tokens=ids tokens.path="
            raise ConfigError("model.tokenizer", "null", remedy)
        return open_tokenizer(name)

    @cached_property
    def of_model(self) -> Hash:
        """The model's hash."""
        config = self._run_plan.config
        of_model: dict[str, Callable[[], Any]] = {key: partial(config.model.get, key) for key in OF_HASH}
        compression = {COMPRESSION: lambda: load_compression(self.tokenizer, code_cache(config.cache_dir))}
        return make(config.model.hash, {**of_model, **compression})

    @cached_property
    def plan(self) -> HashPlan:
        """The layer's hash constants."""
        return self.of_model(self._run_plan.geometry)
