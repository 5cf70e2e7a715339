"""Every command of the README runs, on a smaller scale."""

import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, TINY

from engram_exp import load_results
from engram_exp.plan import CASES

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
        [sys.executable, *arguments[1:], *folders], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_commands():
    assert len(COMMANDS) >= 5


def milliseconds(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def table_of(campaign: str, index: list[str]) -> str:
    """The README's table of a published campaign: medians of `wall_ms`, four digits."""
    frame = load_results(ROOT / "outputs/reference" / campaign)
    frame = frame[frame["status"] == "ok"]
    cases = [case for case in CASES if case in set(frame["case"])]
    table = frame.pivot_table(index=index, columns="case", values="wall_ms_median")[cases]
    lines = ["| " + " | ".join([*index, *cases]) + " |", "|" + "---|" * len(index) + "---:|" * len(cases)]
    for key, row in table.iterrows():
        lines.append("| " + " | ".join([*key, *map(milliseconds, row)]) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("campaign", "index"),
    [
        ("original_h200", ["strategy", "components"]),
        ("original_2_cores", ["strategy", "components"]),
        ("text_h200", ["strategy", "tokens"]),
        ("shapes_h200", ["shape", "strategy"]),
    ],
)
def test_published_numbers_are_those_of_the_files(campaign, index):
    assert table_of(campaign, index) in README


def test_the_python_of_the_readme_runs(capsys):
    (block,) = code_blocks("python")
    exec(block.replace('"outputs"', '"outputs/reference"'), {})
    assert "kv_on_gpu" in capsys.readouterr().out
