"""Options of components are held to the annotations of their constructors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from engram_exp.config.options import check_options
from engram_exp.errors import ConfigError


class Annotated:
    """A component with options of every kind that YAML can hold."""

    def __init__(
        self,
        max_tokens: int,
        whole: int = 1,
        number: float = 1.0,
        flag: bool = False,
        text: str = "",
        path: Path = Path(),
        perhaps: int | None = None,
        optional: Optional[float] = None,  # noqa: UP045
        either: Union[bool, str] = True,  # noqa: UP007
        order: Literal["sorted", "as asked"] = "sorted",
        depth: Literal[1, 2, None] = None,
        whole_numbers: list[int] = (),  # type: ignore[assignment]
        orders: Sequence[Literal["a", "b"]] = (),
        pair: tuple[int, str] = (1, ""),
        any_number: tuple[float, ...] = (),
        rates: dict[str, float | None] | None = None,
        bare: list = (),  # type: ignore[assignment]
        anything: Any = None,
    ) -> None: ...


class Bare:
    def __init__(self, max_tokens: int, times) -> None: ...


class Needy:
    def __init__(self, max_tokens: int, times: int, *rest: int, **options: int) -> None: ...


class Unreadable:
    def __init__(self, times: Nowhere) -> None: ...  # noqa: F821


def check(component: type, **options: object) -> None:
    node = OmegaConf.create({"lookup": {"_target_": f"{__name__}.{component.__name__}", **options}}).lookup
    check_options("lookup", node)


FITS = [
    ("whole", 3), ("number", 0.5), ("number", 3), ("flag", True), ("text", "3"), ("path", "a/b"), ("perhaps", 3),
    ("perhaps", None), ("optional", 1), ("optional", None), ("either", False), ("either", "auto"),
    ("order", "as asked"), ("depth", 2), ("depth", None), ("whole_numbers", []), ("whole_numbers", [1, 2]),
    ("orders", ["a", "b", "a"]), ("pair", [1, "a"]), ("any_number", [1, 2.5, 3]), ("rates", None),
    ("rates", {"a": 1, "b": None}), ("bare", [1, "a"]), ("anything", {"a": [1]}),
    ("whole", {"_target_": "builtins.int"}),
]  # fmt: skip
REFUSED = [
    ("whole", 1.5, "lookup.whole=1.5: must be int, not of type float"),
    ("whole", "3", "lookup.whole=3: must be int, not of type str"),
    ("whole", True, "lookup.whole=True: must be int, not of type bool"),
    ("whole", None, "lookup.whole=null: must be int, not of type NoneType"),
    ("number", "much", "lookup.number=much: must be float, not of type str"),
    ("number", True, "lookup.number=True: must be float, not of type bool"),
    ("flag", 1, "lookup.flag=1: must be bool, not of type int"),
    ("flag", "yes", "lookup.flag=yes: must be bool, not of type str"),
    ("text", 3, "lookup.text=3: must be str, not of type int"),
    ("path", 3, "lookup.path=3: must be Path, not of type int"),
    ("perhaps", "all", "lookup.perhaps=all: must be int or null, not of type str"),
    ("optional", "all", "lookup.optional=all: must be float or null, not of type str"),
    ("either", 1, "lookup.either=1: must be bool or str, not of type int"),
    ("order", "random", "lookup.order=random: must be one of sorted, as asked"),
    ("order", None, "lookup.order=null: must be one of sorted, as asked"),
    ("depth", 3, "lookup.depth=3: must be one of 1, 2, null"),
    ("depth", True, "lookup.depth=True: must be one of 1, 2, null"),
    ("whole_numbers", [1, "a"], "lookup.whole_numbers=[1, 'a']: must be list[int], not of type list"),
    ("whole_numbers", 1, "lookup.whole_numbers=1: must be list[int], not of type int"),
    ("whole", [1], "lookup.whole=[1]: must be int, not of type list"),
    ("orders", ["a", "c"], "lookup.orders=['a', 'c']: must be "),
    ("pair", [1], "lookup.pair=[1]: must be tuple[int, str], not of type list"),
    ("pair", [1, 2], "lookup.pair=[1, 2]: must be tuple[int, str], not of type list"),
    ("rates", {"a": "fast"}, "lookup.rates={'a': 'fast'}: must be dict[str, float | None] or null, not of type dict"),
    ("rates", {1: 1}, "lookup.rates={1: 1}: must be dict[str, float | None] or null, not of type dict"),
    ("text", {"a": 1}, "lookup.text={'a': 1}: must be str, not of type dict"),
    ("max_tokens", 3, "lookup.max_tokens=3: follows from the rest of the configuration; leave it out"),
    ("widht", 3, "lookup.widht=3: Annotated has no such option"),
]


@pytest.mark.parametrize(("name", "value"), FITS)
def test_what_an_annotation_allows_is_taken(name, value):
    check(Annotated, **{name: value})


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_what_it_does_not_allow_is_refused_by_name(name, value, says):
    with pytest.raises(ConfigError) as refusal:
        check(Annotated, **{name: value})
    assert str(refusal.value).startswith(says)


def test_an_option_without_annotation_is_refused():
    with pytest.raises(ConfigError, match=r"^lookup\.times=2: Bare does not say of what type it is; annotate it$"):
        check(Bare, times=2)


def test_an_option_that_is_needed_is_asked_for():
    check(Needy, times=2)
    with pytest.raises(ConfigError, match=r"^lookup\.times=null: Needy needs it; set it, or give it a default$"):
        check(Needy)


@pytest.mark.parametrize(("choice", "says"), [("triton_link", "lookup=triton_link: "), (None, "lookup=triton: ")])
def test_without_triton_what_was_typed_is_refused(monkeypatch, choice, says):
    node = OmegaConf.create({"_target_": "engram_exp.steps.lookup.triton.TritonLookup"})

    def missing(path: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr("engram_exp.config.options.get_class", missing)
    with pytest.raises(ConfigError, match=f"^{says}needs Triton, which is not installed; strategy=kv_on_gpu and"):
        check_options("lookup", node, choice)


def test_annotations_that_cannot_be_read_are_refused():
    with pytest.raises(ConfigError, match=r"^lookup\._target_=.*Unreadable: cannot be imported \(.*'Nowhere'"):
        check(Unreadable, times=2)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc", max_size=3)


@pytest.mark.slow
@given(st.lists(SCALARS.filter(lambda value: not isinstance(value, float)), min_size=1, max_size=4), SCALARS)
def test_a_literal_allows_its_values_and_nothing_that_merely_equals_them(choices, value):
    def constructor(self: object, option) -> None: ...

    constructor.__annotations__["option"] = Literal[tuple(choices)]
    Chosen.__init__ = constructor  # type: ignore[method-assign]
    is_chosen = any(value == choice and type(value) is type(choice) for choice in choices)
    if is_chosen:
        return check(Chosen, option=value)
    with pytest.raises(ConfigError):
        check(Chosen, option=value)
    return None


class Chosen:
    """A component whose constructor a test writes."""
