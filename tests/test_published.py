"""What is published is whole, and what its pages say of it is what its files hold."""

import argparse
import itertools
import json
import re
import shlex

import pandas as pd
import pytest
from common import H200, ROOT

from engram_exp import load_results, load_samples
from engram_exp.analysis.compare import compare_values
from engram_exp.analysis.subjects import load_campaign, subjects
from engram_exp.commands import summary
from engram_exp.pages.figures import figures
from engram_exp.pages.page import SVG_WIDTH, draw
from engram_exp.pages.sections import OVER_TOKENS

REFERENCE = ROOT / "outputs/reference"
PAGES = sorted(REFERENCE.rglob("README.md"))
VERDICT = re.compile(r"^\| (\w+) \| (\w+) \| (\d+) \| ([\d.]+) \| ([\d. ]+|none) \| (\w+) \|$", flags=re.MULTILINE)
COMMAND = re.compile(r"`python -m engram_exp summary ([^`]+)`")
TABLE = re.compile(r"^\|.*\|\n\|(?:---\|)+(?:---:\|)+\n(?:\|.*\|\n)+", flags=re.MULTILINE)  # numbers stand right


def tables():
    """Every table of numbers, and the command that prints it: the last one before the table."""
    for page in (*PAGES, ROOT / "docs/engines.md"):
        text, end = page.read_text(), 0
        for number, found in enumerate(TABLE.finditer(text)):
            commands = COMMAND.findall(text, end, found.start())
            end = found.end()
            what = f"{page.parent.name}/{page.name}, table {number + 1}"
            yield pytest.param(commands[-1] if commands else None, found[0], id=what)


@pytest.mark.parametrize(("command", "shown"), list(tables()))
def test_a_table_is_what_its_command_prints(command, shown, monkeypatch, capsys):
    assert command, "no command stands above it"
    parser = argparse.ArgumentParser()
    summary.add_arguments(parser)
    monkeypatch.chdir(ROOT)
    summary.run(parser.parse_args(shlex.split(command)))
    assert capsys.readouterr().out == shown


def test_every_campaign_has_a_page_and_every_page_with_times_a_table():
    campaigns = [folder for folder in REFERENCE.iterdir() if folder.is_dir()]
    assert {page.parent for page in PAGES} == {REFERENCE, *campaigns}
    assert all(TABLE.search((folder / "README.md").read_text()) for folder in campaigns)


def test_the_published_h200_campaign_is_whole():
    frame = load_results(H200)
    assert set(frame["status"]) == {"ok", "skipped"}
    assert set(load_samples(H200)["run_id"]) == set(frame[frame["status"] == "ok"]["run_id"])
    limits = json.loads((H200 / "limits.json").read_text())
    assert limits["machine"]["device_name"] == "NVIDIA H200"


def test_the_number_of_runs_is_the_one_that_is_said():
    said = re.findall(r"^\| `(\w+)` \|.*\| ([\d +]+) \|$", (H200 / "README.md").read_text(), flags=re.MULTILINE)
    assert {folder: sum(map(int, runs.split("+"))) for folder, runs in said} == {
        folder.name: load_results(folder)["run_id"].nunique() for folder in H200.iterdir() if folder.is_dir()
    }


@pytest.mark.slow
def test_the_picture_shows_the_published_numbers():
    frame = load_campaign(H200 / "crossover")
    shown = next(figure for figure in figures(frame, subjects(frame)) if figure.section == OVER_TOKENS)
    labels = re.compile('aria-label="([^"]*)"')
    assert labels.findall((H200 / "crossover.svg").read_text()) == labels.findall(draw(shown, SVG_WIDTH))
    assert "](crossover.svg)" in (H200 / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("campaign", "lines"), [("h100_engines", 51), ("h200_engines", 33)])
def test_what_several_runs_on_each_side_decide_is_what_compare_says(campaign, lines):
    text = (REFERENCE / campaign / "README.md").read_text()
    found = list(VERDICT.finditer(text))
    assert len(found) == lines
    for (a, b, folder, case), rows in itertools.groupby(found, lambda row: (*row.groups()[:2], *above(text, row))):
        results = load_results(ROOT / folder)
        compared = compare_values(results[results["case"] == case], "components", a, b).set_index("batch_size")
        for tokens, *shown in (row.groups()[2:] for row in rows):
            now = compared.loc[int(tokens)]
            interval = "none" if pd.isna(now["ratio_lo"]) else f"{now['ratio_lo']:.3f} .. {now['ratio_hi']:.3f}"
            assert shown == [f"{now['ratio']:.3f}", interval, now["verdict"]]


def test_what_engines_ways_expose_beyond_ours_is_what_compare_says():
    folder = REFERENCE / "h100_engines_step"
    text = " ".join((folder / "README.md").read_text().split())
    for engine, sizes in {"vllm_0_33": (64, 256), "sglang_0_5_23": (64,)}.items():
        compared = compare_values(load_results(folder), "components", engine, "tuned_uva")
        exposed = compared[compared["case"] == "exposed"].set_index("batch_size")
        for size in sizes:
            least, most = -exposed.loc[size, "longer_ms_hi"], -exposed.loc[size, "longer_ms_lo"]
            assert f"{-exposed.loc[size, 'longer_ms']:.3f} " in text
            assert f"({least:.3f} to {most:.3f})" in text
            assert exposed.loc[size, "verdict"] == "faster"


def above(text, row):
    """The folder and the case that were named last before a verdict."""
    before = text[: row.start()]
    return re.findall(r"compare --folder (\S+) ", before)[-1], re.findall(r"^Of `(\w+)`", before, flags=re.M)[-1]
