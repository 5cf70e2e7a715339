"""The plan of the house: a room imports from the floors below its own, never from a room beside or above it. So rooms
never import each other in a circle, and whoever reads one needs to know only what lies below."""

import ast
from functools import cache
from pathlib import Path

import pytest
from common import ROOT

FLOORS = (  # bottom up; a room is a folder of the package, or a file beside the folders
    "vocabulary",
    "errors",
    "layer machine",
    "stage decoder",
    "steps strategy results",
    "measure config analysis reuse",
    "run pages",
    "campaign commands",
    "__main__",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
COMPUTE = ("layer", "machine", "steps", "decoder", "strategy")
PACKAGE = ROOT / "engram_exp"
FILES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(room: str) -> list[tuple[str, str, str]]:
    """What the files of a room import, wherever they do: the line, the first name of the module, and the second."""
    found = []
    for file in (file for file in FILES if room_of(file) == room):
        for node in nodes_of(file):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            for name in names:
                module = f"{'.' * node.level}{node.module}.{name}" if isinstance(node, ast.ImportFrom) else name
                first, second, *_ = [*module.split("."), ""]
                found.append((f"{file.relative_to(ROOT)}:{node.lineno} imports {module}", first, second))
    return found


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} == set(FLOOR_OF)


@pytest.mark.slow
@pytest.mark.parametrize("room", FLOOR_OF)
def test_imports_lead_down_only(room):
    below = [other for other, floor in FLOOR_OF.items() if floor < FLOOR_OF[room]]
    wrong = [
        line
        for line, first, second in imports_of(room)
        if first in ("engram_exp", "") and second not in (room, *below)  # "" is a relative import: write it out
    ]
    assert not wrong, f"{room} may import from {' '.join([room, *below])} only: {'; '.join(wrong)}"


@pytest.mark.parametrize("room", COMPUTE)
def test_what_computes_knows_no_configuration_and_no_table_of_results(room):
    wrong = [line for line, first, _ in imports_of(room) if first in ("hydra", "omegaconf", "pandas", "csv")]
    assert not wrong, "; ".join(wrong)
