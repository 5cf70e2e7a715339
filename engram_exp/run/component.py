"""From a component's options to the component: the project's one `instantiate` call stands here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig


def make(node: DictConfig, given: Mapping[str, Callable[[], Any]], usual: Sequence[str] = ()) -> Any:
    """Instantiate a component from its options and from what its constructor asks for by name.

    Args:
        node: of the component.
        given: what there is; made when it is asked for.
        usual: what its constructor gets if it does not name its arguments.
    """
    parameters = inspect.signature(get_class(node._target_)).parameters
    takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [name for name in given if name in parameters or (takes_any and name in usual)]
    # `_partial_`: Hydra would turn dataclasses among its own keyword arguments into configurations.
    return instantiate(node, _partial_=True)(**{name: given[name]() for name in names})


def asks_only_for(node: DictConfig, known: Collection[str]) -> bool:
    """Whether a component's constructor names nothing but these and its own options."""
    parameters = inspect.signature(get_class(node._target_)).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind != inspect.Parameter.VAR_KEYWORD}
    return named <= {*known, *node}
