"""`python -m engram_exp`: what it prints, and what it refuses."""

import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

from engram_exp.__main__ import main

CROSSOVER = str(ROOT / "outputs/reference/h200/crossover")


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["engram_exp", *arguments])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_compare_prints_a_table_and_says_what_decides_nothing(command):
    code, out, _ = command("compare", "--by", "strategy", "--folder", CROSSOVER, "kv_on_gpu", "uva")
    assert code == 0
    assert "batch_size" in out
    assert "undecided" in out
    assert "fewer than 4 runs on a side decide nothing: measure with repeats=5" in out


def test_compare_prints_csv(command):
    code, out, _ = command("compare", "--by", "strategy", "--folder", CROSSOVER, "kv_on_gpu", "uva", "--csv")
    assert code == 0
    assert {"ratio", "verdict"} <= set(out.splitlines()[0].split(","))


def test_compare_takes_two_folders(command):
    code, out, _ = command("compare", CROSSOVER, CROSSOVER)
    assert code == 0
    assert "1.000" in out
    header = out.splitlines()[1]
    assert "strategy" in header
    assert "batch_size" in header
    assert "hashing" not in header, "the strategy tells it already"


def test_summary_prints_markdown(command):
    code, out, _ = command("summary", CROSSOVER, "batch_size", "--case", "full", "--columns", "strategy")
    assert code == 0
    assert out.startswith("| batch_size | device | kv_on_cpu | kv_on_gpu | uva |")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "nowhere", CROSSOVER], "refused: nowhere: no such file or folder"),
        (["compare", "--by", "strategy", "--folder", CROSSOVER, "uva", "disk"], "refused: strategy is never disk"),
        (["compare", "tests/golden", CROSSOVER], "refused: tests/golden: no results below it"),
        (["advise", "tests/golden"], "refused: tests/golden: no results below it"),
        (["advise", CROSSOVER, "--model", "other"], "refused: model=other: not measured; the data hold demo"),
        (["summary", CROSSOVER, "nonsense"], "refused: no column nonsense"),
        (["summary", CROSSOVER, "--case", "nap"], "refused: no measured case nap"),
    ],
)
def test_refusals(command, arguments, says):
    code, _, err = command(*arguments)
    assert code == 2
    assert err.startswith(says)


def test_an_empty_folder_is_refused(command, tmp_path):
    for arguments in (["compare", str(tmp_path), str(tmp_path)], ["summary", str(tmp_path)]):
        code, _, err = command(*arguments)
        assert (code, err.startswith("refused: ")) == (2, True)


def test_analysis_takes_no_pytorch():
    code = "import sys, engram_exp, engram_exp.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_two_runs_of_a_value_are_compared_by_number_too(command, tmp_path):
    frame = pd.read_csv(f"{CROSSOVER}/0/0/results.csv")
    for run, threads in (("0", 8), ("1", 16)):
        (tmp_path / run).mkdir()
        frame.assign(threads=threads, run_id=run).to_csv(tmp_path / run / "results.csv", index=False)
    code, out, err = command("compare", "--by", "threads", "--folder", str(tmp_path), "8", "16")
    assert code == 0, err
    assert "1.000" in out
