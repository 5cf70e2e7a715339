"""What the pages say is so: links lead somewhere, commands compose, names exist, numbers are the code's."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator

import pytest
from common import ROOT
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_architecture import FLOORS

from engram_exp import stage, vocabulary
from engram_exp.__main__ import COMMANDS
from engram_exp.analysis import exposed_rows
from engram_exp.campaign import campaign, earlier
from engram_exp.config.checks import check
from engram_exp.config.derived import geometry_of
from engram_exp.machine import disturbance
from engram_exp.measure import limits, loop, statistics
from engram_exp.measure.rates import disk
from engram_exp.results.schema import COLUMNS, SAMPLE_COLUMNS
from engram_exp.run import on_disk, terminal
from engram_exp.steps.lookup import from_file
from engram_exp.steps.tables import row_file

DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "outputs").rglob("README.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
PLACEHOLDER = re.compile(r"\.\.\.|\[-| [A-Z]{3,}\b|file:///my/")  # a command that shows a form, not what one types
NAMES = {*COLUMNS, *SAMPLE_COLUMNS}


def page(name: str) -> str:
    """Of docs/, without its blocks, on one line."""
    return " ".join(BLOCK.sub("", (ROOT / "docs" / name).read_text()).split())


def cells(name: str, head: str) -> list[list[str]]:
    """The lines of the table below these heads."""
    lines = (ROOT / "docs" / name).read_text().partition(f"{head}\n")[2].splitlines()[1:]
    rows = lines[: next(number for number, line in enumerate([*lines, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code_of(file) -> Iterator[str]:
    """Every line of a page's blocks, without its comment, and every piece of code in its text, on one line."""
    text = file.read_text()
    for _, block in BLOCK.findall(text):
        yield from (" ".join(line.partition(" #")[0].split()) for line in block.replace("\\\n", "").splitlines())
    yield from (" ".join(code.split()) for code in CODE.findall(BLOCK.sub("", text)))


def commands(start: str) -> list[str]:
    found = (code.rpartition("&& ")[2] for file in PAGES for code in code_of(file) if start in code)
    return sorted({code for code in found if code.startswith(start) and not PLACEHOLDER.search(code)})


def of_a_sweep(arguments: list[str]) -> list[list[str]]:
    """The overrides of some of its runs: each value of each list is in one of them."""
    given = [argument for argument in arguments if not argument.startswith("-")]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), max_batch_size=None)
    seen: set[str] = set()
    kept = []
    for job in map(list, jobs):
        if not seen.issuperset(job):
            kept.append(job)
            seen.update(job)
    return kept or [[]]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    text = BLOCK.sub("", file.read_text())
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if not link.startswith("http"):
            assert (file.parent / path).exists(), link
            assert path or anchor in anchors, link


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("python run.py"))
def test_a_command_composes(configure, command):
    for overrides in of_a_sweep(shlex.split(command)[2:]):
        check(configure(*overrides), here=False)


@pytest.mark.parametrize("command", commands("python -m engram_exp "))
def test_a_command_parses_and_its_columns_exist(command):
    name, *arguments = shlex.split(command)[3:]
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[name][0].add_arguments(parser)
    found = parser.parse_args(arguments)
    named = [getattr(found, "by", None), getattr(found, "columns", None), getattr(found, "value", None)]
    named += [*getattr(found, "index", []), *(choice.partition("=")[0] for choice in getattr(found, "only", []))]
    assert NAMES.issuperset(filter(None, named))


def test_there_are_commands_of_each_kind():
    assert len(commands("python run.py")) > 10
    assert {command.split()[3] for command in commands("python -m engram_exp ")} == set(COMMANDS)


@pytest.mark.parametrize("file", [file for file in PAGES if file.name != "CHANGELOG.md"], ids=lambda file: file.stem)
def test_what_is_named_exists(file):
    for code in code_of(file):
        for name in re.findall(r"^(?:python -m )?(engram_exp(?:\.\w+)+)", code):
            found, *rest = importlib.import_module("engram_exp"), *name.split(".")[1:]
            for number, part in enumerate(rest, start=1):
                if not hasattr(found, part):
                    importlib.import_module(".".join(["engram_exp", *rest[:number]]))
                found = getattr(found, part)
    for name in re.findall(r"\bcolumns? `(\w+)`", file.read_text()):
        assert name in NAMES


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.stem)
def test_files_that_are_named_exist(file):
    made = ("select.py", "select.yaml")  # by the recipe
    for code in code_of(file):
        if re.fullmatch(r"(?:engram_exp|conf|tests|docs|outputs)/[\w./]+\w", code) and not code.endswith(made):
            assert (ROOT / code).exists(), code


@pytest.mark.slow
def test_the_recipe_of_a_lookup_works(run_inline, tmp_path, monkeypatch):
    blocks = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))
    folder = importlib.import_module("engram_exp.steps.lookup")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    (tmp_path / "conf/lookup").mkdir(parents=True)
    (tmp_path / "conf/lookup/select.yaml").write_text(blocks["yaml"])
    wrong = blocks["python"].replace("row_ids.flatten()", "row_ids.flatten().flip(0)")
    for name, code, status in (("select", blocks["python"], "ok"), ("wrong", wrong, "mismatch")):
        (tmp_path / f"{name}.py").write_text(code)
        target = f"lookup._target_=engram_exp.steps.lookup.{name}.SelectLookup"
        for strategy in ("kv_on_cpu", "kv_on_gpu"):
            taken = ("lookup=select", target, f"strategy={strategy}")
            rows = run_inline(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *taken)
            statuses = {row["case"]: row["status"] for row in rows}
            assert (statuses["lookup"], statuses["full"]) == (status, status), rows


def test_the_floors_are_those_of_the_test():
    shown = {
        int(floor): CODE.findall(rooms)
        for floor, rooms, _ in cells("architecture.md", "| floor | room | what is in it |")
    }
    assert shown == {number: rooms.split() for number, rooms in enumerate(FLOORS, start=1)}


def test_all_that_a_stage_knows_is_told():
    told = [
        cell for row in cells("architecture.md", "| name | what it says | usually |") for cell in CODE.findall(row[0])
    ]
    names = {name.partition("(")[0] for name in told}
    asked = {name for name in vars(stage.Stage) if not name.startswith("_")}
    assert names == asked | {"needs", "makes"}
    assert {"needs", "makes"} <= set(stage.PlannedStage.__dataclass_fields__)


@pytest.mark.parametrize(
    "says",
    [
        f"its limit is more than {limits.CLEARLY_BEATEN} times its median",
        f"together no less than {1 - loop.WARM_GAIN:.0%} of".replace("%", " %"),
        f"more than {statistics.STEADY_CHANGE:.0%} apart".replace("%", " %"),
        f"more than {disturbance.PREEMPTED_PER_S} a second of sampling and thread",
        f"at most every {loop.SM_CLOCK_EVERY_S * 1e3:.0f} ms",
        f"at least {statistics.CONFIDENCE:.0%}, from order statistics".replace("%", " %"),
    ],
)
def test_numbers_of_the_rules_are_those_of_the_code(says):
    assert says in page("measuring.md")


def test_shares_of_the_rules_are_those_of_the_code():
    assert (loop.WARMUP_SHARE, loop.SLOW_WARMUP_SHARE, 2 * loop.WINDOW_CALLS) == (1 / 20, 1 / 4, 6)
    assert "A twentieth of `budget_s` ends that too" in page("measuring.md")
    assert disturbance.SPOILED_SAMPLES == 1 / 10
    assert "more than a tenth of its number of samples" in page("measuring.md")
    assert (exposed_rows.LEAST_SHARE_OF_FEW, exposed_rows.LEAST_SHARE) == (1 / 1.6, 1 / 2)
    of_few = "at least 1 / 1.6 of its median, or a half with more than"
    assert f"{of_few} {exposed_rows.FEW_SEQUENCES} sequences, and a prompt from a half on" in page("measuring.md")


def test_the_tokens_that_are_compared_are_told():
    verify = importlib.import_module("engram_exp.run.verify")
    text = page("measuring.md")
    assert f"the first and last {verify.EDGE} tokens of the batch, {verify.EDGE} on both sides" in text
    assert f"and {verify.SPREAD} drawn ones" in text
    assert verify.GLANCE == 2
    glance, loop = (importlib.import_module(f"engram_exp.{name}") for name in ("run.glance", "measure.loop"))
    assert (loop.LOOKED_AT_EVERY, loop.QUICK_MS) == (8, 1)
    assert "or one in eight where a call takes less than 1 ms" in text
    assert f"behind {glance.BURST_CALLS} more calls (at most {glance.BURST_S} s of them)" in " ".join(text.split())
    assert "the first token, the last, and two that are drawn once" in text
    made_up = importlib.import_module("engram_exp.run.made_up")
    assert f"repeats every {made_up.PATTERN_TOKENS} tokens" in text


def test_every_status_and_exit_code_is_told():
    statuses = {value for name, value in vars(vocabulary).items() if name in (
        "OK", "SUSPECT", "SKIPPED", "REFUSED", "MISMATCH", "OOM_HOST", "OOM_DEVICE", "TIMEOUT", "CRASH"
    )}  # fmt: skip
    assert statuses <= set(CODE.findall(page("measuring.md")))
    codes = [int(code) for row in cells("campaigns.md", "| code | when |") for code in row[0].split(", ")]
    own = [campaign.EXIT_OK, campaign.EXIT_FAILED, campaign.EXIT_REFUSED, campaign.EXIT_NOTHING]
    assert codes == [*own, 128 + 2, 128 + 15]


@pytest.mark.slow
def test_the_table_of_models_is_that_of_their_files(configure):
    head = "| `model=` | layers | rows of the first | columns | values a row | hidden x copies | GB in bfloat16 |"
    shown = cells("models.md", head)
    assert sorted(row[0].strip("`") for row in shown) == sorted(file.stem for file in (ROOT / "conf/model").iterdir())
    for row in shown:
        geometry = geometry_of(configure(f"model={row[0].strip('`')}"))
        assert row[1:] == [
            ", ".join(map(str, geometry.layers)),
            f"{geometry.rows:,}",
            str(geometry.columns),
            str(geometry.row_values),
            f"{geometry.hidden_size} x {geometry.hc_mult}",
            f"{geometry.table_bytes / 1e9:.1f}",
        ]


def test_the_parts_of_a_fingerprint_are_told():
    assert [row[0] for row in cells("campaigns.md", "| part | what is in it |")] == list(earlier.PARTS)


def test_what_is_said_of_disks_is_what_the_code_has():
    text = page("disk.md")
    assert f"header and {row_file.SAMPLED_ROWS} rows" in text
    assert f"keep {from_file.STAGED_BYTES // 2**20} MiB of blocks at a time" in text
    assert f"had less read from the disk than {on_disk.LEAST_SHARE:g} of the distinct rows" in text
    assert on_disk.LOOKS == 6
    assert "up to six calls are looked at" in text
    assert f"in {', '.join(map(str, terminal.STEPS_MS[:-1]))} and {terminal.STEPS_MS[-1]} ms" in text
    assert (disk.BLOCK_BYTES[0], disk.BLOCK_BYTES[-1], *disk.DEPTHS[:: len(disk.DEPTHS) - 1]) == (512, 2**18, 1, 256)
    for lookup in ("pread", "direct", "io_uring"):
        options = OmegaConf.load(ROOT / f"conf/lookup/{lookup}.yaml")
        said = " ".join(f"{key}={options[key]}" for key in ("queue_depth", "block_bytes") if key in options)
        assert re.search(rf"\| `{lookup}` \|.*`{said}`", (ROOT / "docs/disk.md").read_text())
