"""Every command of the README runs, on a smaller scale."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

from engram_exp import load_results, load_samples
from engram_exp.analysis.summary import markdown

README = (ROOT / "README.md").read_text()
SMALLER = {"4096": "16", "8192": "24", "64": "2", "100": "3"}  # lengths, batches and iterations


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = sorted(
    {
        line.partition("#")[0].rpartition("&& ")[2].strip()
        for block in code_blocks("bash")
        for line in block.splitlines()
        if "python run.py" in line
    }
)


def shrink(command: str) -> list[str]:
    arguments = shlex.split(re.sub(r"\b(\d+)\b(?=[,\s]|$)", lambda number: SMALLER.get(number[1], number[1]), command))
    chosen = {argument.partition("=")[0] for argument in arguments} | {"worker", "hardware", "tokens"}
    tiny = [override for override in TINY if "model" not in chosen or not override.startswith("model.")]
    return [*arguments, *(override for override in tiny if override.partition("=")[0] not in chosen)]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, cache_dir):
    arguments = shrink(command)
    assert arguments[:2] == ["python", "run.py"]
    folders = [f"output_dir={tmp_path}", f"cache_dir={cache_dir}"]
    done = subprocess.run(
        [sys.executable, *arguments[1:], *folders],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},  # what a user without a GPU has
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command", [line for block in code_blocks("bash") for line in block.splitlines() if "-m engram_exp compare" in line]
)
def test_comparison(command):
    arguments = [sys.executable, *shlex.split(command)[1:]]
    if "outputs/before" in command:  # folders of the reader's own
        arguments[-2:] = ["outputs/reference/h200/text"] * 2
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout


@pytest.mark.parametrize(
    "command", [line for block in code_blocks("bash") for line in block.splitlines() if "-m engram_exp advise" in line]
)
def test_advice(command):
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "uva" in done.stdout


def test_there_are_commands():
    assert len(COMMANDS) >= 5


TABLES = [
    ("h200/strategies", ["shape", "strategy"], {}),
    ("h200/strategies", ["shape", "strategy"], {"value": "efficiency"}),
    ("h200/crossover", ["batch_size"], {"case": "full", "columns": "strategy"}),
    ("h200/sorting", ["row_bytes", "row_order"], {"case": "lookup", "columns": "batch_size"}),
    ("h200/memory", ["strategy", "table"], {}),
    ("h200/v41", ["shape", "strategy"], {}),
    ("h200/text", ["strategy"], {}),
    ("original_h200", ["strategy", "components"], {}),
    ("original_2_cores", ["strategy", "components"], {}),
]


@pytest.mark.parametrize(("campaign", "index", "options"), TABLES)
def test_published_numbers_are_those_of_the_files(campaign, index, options):
    frame = load_results(ROOT / "outputs/reference" / campaign)
    case = options.get("case")
    how = {name: choice for name, choice in options.items() if name != "case"}
    assert markdown(frame[frame["case"] == case] if case else frame, index, **how) in README


def test_the_published_h200_campaign_is_whole():
    frame = load_results(ROOT / "outputs/reference/h200")
    assert set(frame["status"]) == {"ok", "skipped"}
    assert set(load_samples(ROOT / "outputs/reference/h200")["run_id"]) == set(frame[frame["status"] == "ok"]["run_id"])
    limits = json.loads((ROOT / "outputs/reference/h200/limits.json").read_text())
    assert limits["machine"]["device_name"] == "NVIDIA H200"


def test_the_python_of_the_readme_runs(capsys):
    (block,) = code_blocks("python")
    exec(block.replace('"outputs"', '"outputs/reference"'), {})
    assert "kv_on_gpu" in capsys.readouterr().out
