"""Every command of the README runs, on a smaller scale."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from common import H200, ROOT, TINY

from engram_exp import load_results

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
    command = command.replace("repeats=5", "repeats=2")
    arguments = shlex.split(re.sub(r"\b(\d+)\b(?=[,\s]|$)", lambda number: SMALLER.get(number[1], number[1]), command))
    chosen = {argument.partition("=")[0] for argument in arguments} | {"worker", "hardware", "tokens"}
    tiny = [override for override in TINY if "model" not in chosen or not override.startswith("model.")]
    return [*arguments, *(override for override in tiny if override.partition("=")[0] not in chosen)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_command(command, tmp_path, cache_dir):
    arguments = shrink(command)
    assert arguments[:2] == ["python", "run.py"]
    folders = [f"output_dir={tmp_path}", f"cache_dir={cache_dir}"]
    again = [argument for argument in arguments if argument.startswith("retry=")]  # of a campaign that has been run
    first = [argument for argument in arguments if argument not in again]
    for each in [first, arguments] if again else [arguments]:
        done = subprocess.run(
            [sys.executable, *each[1:], *folders],
            cwd=ROOT,
            env={**os.environ, "TRITON_INTERPRET": "0"},  # what a user without a GPU has
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def analyses(name: str) -> list[str]:
    commands = [line for block in code_blocks("bash") for line in block.splitlines()]
    return [command for command in commands if f"-m engram_exp {name}" in command]


def analyse(command: str, *more: str) -> str:
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], *more], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", analyses("compare"))
def test_comparison(command):
    for own, lease in (("outputs/before", "first_lease"), ("outputs/after", "second_lease")):  # the reader's folders
        command = command.replace(own, f"outputs/reference/h200/same/{lease}")
    assert re.search(r"│ (faster|slower) +│", analyse(command)), "the example decides something"


@pytest.mark.parametrize("command", analyses("advise"))
def test_advice(command):
    shown = analyse(command)
    if "--json" in command:
        assert {choice["use"] for choice in json.loads(shown)["choices"]} == {"decode", "prefill"}
    else:
        assert "decode, 64 tokens per step: uva\n" in shown


def test_the_advice_that_is_shown_is_what_is_printed():
    assert code_blocks("text") == [analyse(analyses("advise")[0])]


@pytest.mark.parametrize("command", analyses("report"))
@pytest.mark.slow
def test_report(command, tmp_path):
    assert (tmp_path / "index.html").samefile(analyse(command, "--output", str(tmp_path)).strip())


def test_there_are_commands():
    assert len(COMMANDS) >= 5


def test_the_python_of_the_readme_draws_the_curves(tmp_path, monkeypatch):
    (block,) = code_blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(block.replace("outputs/reference", str(ROOT / "outputs/reference")), {})
    page = (tmp_path / "crossover.html").read_text()
    frame = load_results(H200 / "crossover")
    times = frame[frame["case"] == "full"].groupby(["strategy", "batch_size"])["wall_ms_median"].median()
    assert all(str(ms) in page for ms in times)
