"""`python -m engram_exp`: what it prints, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from common import ROOT

from engram_exp import advise, load_results
from engram_exp.__main__ import main
from engram_exp.results.write import write_run

H200 = ROOT / "outputs/reference/h200"
STRATEGIES = str(ROOT / "outputs/reference/h200/strategies")


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["engram_exp", *arguments])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_compare_prints_a_table_and_says_what_decides_nothing(command):
    code, out, _ = command("compare", "--by", "strategy", "--folder", STRATEGIES, "kv_on_gpu", "uva")
    assert code == 0
    assert "seq_len" in out
    assert "undecided" in out
    assert "no interval: too few runs; 4 on each side (or 3 and 5, 2 and 8) are enough: measure with repeats=5" in out
    says = "2 of A, 2 of B (up_embed, up_ids); they differ in case"
    assert says in out, "either has an upload that the other has not"


STEPS = str(ROOT / "outputs/reference/h100_step")


def test_summary_tells_apart_what_was_asked_unless_it_is_told_how(command):
    assert command("summary", STEPS)[1] == command("summary", STEPS, "strategy", "batch_size", "seq_len")[1]
    told = command("summary", STEPS, "--columns", "batch_size", "--case", "step")[1].splitlines()[0]
    assert told.startswith("| strategy | seq_len | 1 | 64 |")


def test_compare_shows_what_steps_expose_as_a_difference(command):
    mixed = "uva strategies.14=kv_on_gpu"
    _, out, _ = command("compare", "--folder", STEPS, "--only", "batch_size=64", "--by", "strategy", "uva", mixed)
    step = load_results(STEPS).query("case == 'step' and batch_size == 64").groupby("strategy")["exposed_ms_median"]
    apart = np.median(np.subtract.outer(*(step.get_group(name).to_numpy() for name in (mixed, "uva"))))
    (line,) = [line for line in out.splitlines() if "exposed │" in line]
    assert f"│ {apart:+.4f} ms │" in line
    assert "exposed: what a step takes longer than with its rows in place" in out


def test_what_the_case_tells_needs_no_column(command, tmp_path):
    for number, graph_calls in enumerate((8, 8, 0)):
        of_case = {"lookup": {"graph_calls": graph_calls}, "full": {"graph_calls": 0}}
        row = {"run_id": f"{number}", "status": "ok", "wall_ms_median": 1.0, "repeat": number}
        (tmp_path / f"{number}").mkdir()
        write_run(tmp_path / f"{number}", {}, [{**row, "case": case, **more} for case, more in of_case.items()])
    two = "--only", "repeat=0", "--only", "repeat=1"
    assert "graph_calls" not in command("compare", str(tmp_path), str(tmp_path), *two)[1]
    assert "graph_calls" in command("compare", str(tmp_path), str(tmp_path))[1]
    _, out, _ = command("compare", str(tmp_path), str(tmp_path), "--case", "full")
    assert "graph_calls" not in out
    assert "lookup" not in out


def campaign(folder, times):
    """Runs of `full`: batch size -> their medians."""
    for batch_size, medians in times.items():
        for number, ms in enumerate(medians):
            run = folder / f"{batch_size}_{number}"
            run.mkdir(parents=True)
            columns = {"strategy": "uva", "batch_size": batch_size, "wall_ms_median": ms}
            write_run(run, {}, [{"run_id": run.name, "status": "ok", "case": "full", **columns}])
    return str(folder)


@pytest.mark.slow
def test_compare_shows_an_interval_wherever_there_is_one(command, tmp_path):
    a, b = campaign(tmp_path / "a", {1: [1.0] * 3, 2: [1.0]}), campaign(tmp_path / "b", {1: [2.0] * 5, 2: [2.0]})
    _, out, _ = command("compare", a, b)
    (three_and_five,) = (line for line in out.splitlines() if "2.000 .. 2.000" in line)
    assert "slower" in three_and_five
    assert "nan" not in out
    assert "no interval: too few runs" in out
    _, out, _ = command("compare", a, b, "--only", "batch_size=1")
    assert "no interval" not in out
    assert "without a partner" not in out


def test_compare_says_what_decides_less_than_it_seems(command, tmp_path):
    a, b = campaign(tmp_path / "a", {1: [1.0]}), campaign(tmp_path / "b", {1: [2.0, 5.0]})
    _, out, _ = command("compare", a, b)
    assert "a side of 1 run: its time is of one process, and what changes from one to the next is unknown" in out
    assert "B: 1 of 2 times was disturbed: 1 full (1 more than 2 times as long as in another run)" in out
    four = campaign(tmp_path / "c", {1: [1.0] * 4})
    _, out, _ = command("compare", four, four)
    assert "of one process" not in out
    assert "disturbed" not in out


def test_compare_shows_options_wherever_they_differ(command, tmp_path):
    for number, columns in enumerate(({"lookup": "gather"}, {"lookup": "mine", "options": "lookup.foo=1"})):
        row = {"run_id": f"{number}", "status": "ok", "case": "full", "wall_ms_median": 1.0, **columns}
        (tmp_path / f"{number}").mkdir()
        write_run(tmp_path / f"{number}", {}, [row])
    _, out, _ = command("compare", "--by", "lookup", "--folder", str(tmp_path), "gather", "mine")
    assert "- / lookup.foo=1" in out


def test_compare_counts_what_has_no_partner_beside_csv_too(command, tmp_path):
    a, b = campaign(tmp_path / "a", {1: [1.0], 2: [1.0]}), campaign(tmp_path / "b", {1: [2.0]})
    _, out, err = command("compare", a, b, "--csv")
    assert "without a partner: 1 of A, 0 of B; they differ in batch_size" in err
    assert len(out.splitlines()) == 2


def test_compare_prints_csv(command):
    code, out, _ = command("compare", "--by", "strategy", "--folder", STRATEGIES, "kv_on_gpu", "uva", "--csv")
    assert code == 0
    assert {"ratio", "verdict"} <= set(out.splitlines()[0].split(","))


def test_compare_takes_two_folders(command):
    code, out, _ = command("compare", STRATEGIES, STRATEGIES)
    assert code == 0
    assert "1.000" in out
    header = out.splitlines()[1]
    assert "strategy" in header
    assert "seq_len" in header
    assert "hashing" not in header, "the strategy tells it already"


def test_summary_prints_markdown(command):
    code, out, _ = command("summary", STRATEGIES, "seq_len", "--case", "full", "--columns", "strategy")
    assert code == 0
    assert out.startswith("| seq_len | device | kv_on_cpu | kv_on_gpu | uva |")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "nowhere", STRATEGIES], "refused: nowhere: no such file or folder"),
        (["compare", "--by", "strategy", "--folder", STRATEGIES, "uva", "disk"], "refused: strategy is never disk"),
        (["compare", "tests/golden", STRATEGIES], "refused: tests/golden: no results below it"),
        (["advise", "tests/golden"], "refused: tests/golden: no results below it"),
        (["advise", STRATEGIES, "--model", "other"], "refused: model=other: not measured; the data hold demo"),
        (["advise", f"{ROOT}/outputs/reference/original_2_cores"], "refused: device=cpu in all of these runs"),
        (["summary", STRATEGIES, "nonsense"], "refused: no column nonsense"),
        (["summary", STRATEGIES, "--case", "nap"], "refused: no measured case nap"),
        (["summary", STRATEGIES, "case"], "refused: case: wanted in two places (lines: case; --columns: case"),
        (["summary", STRATEGIES, "--value", "limit_by"], "refused: --value limit_by: is no number; choose from iter"),
        (["summary", STRATEGIES, "--only", "strategy"], "refused: --only strategy: must be COLUMN=VALUE"),
        (["advise", STRATEGIES, "--only", "nap=1"], "refused: --only nap=1: no column nap; choose from schema_version"),
        (
            ["compare", STRATEGIES, STRATEGIES, "--only", "strategy=disk"],
            f"refused: {STRATEGIES}: --only strategy=disk: never there; strategy is device, kv_on_cpu, kv_on_gpu, uva",
        ),
        (
            ["report", STRATEGIES, "--output", "/dev/null", "--only", "row_bytes=64"],
            f"refused: {STRATEGIES}: --only row_bytes=64: never there; row_bytes is 128",
        ),
    ],
)
def test_refusals(command, arguments, says):
    code, _, err = command(*arguments)
    assert code == 2
    assert err.startswith(says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["compare", "a", "b", "--threshold", "nan"],
            "argument --threshold: must be a number of at least 0, not 'nan'",
        ),
        (["compare", "a", "b", "--threshold=-0.1"], "argument --threshold: must be a number of at least 0, not '-0.1'"),
        (
            ["compare", "a", "b", "--threshold", "5"],
            "argument --threshold: must be a share below 1 (0.02 is 2 %), not '5'",
        ),
        (["advise", "a", "--decode", "0"], "argument --decode: must be a whole number of at least 1, not '0'"),
        (["advise", "a", "--prefill", "1.5"], "argument --prefill: must be a whole number of at least 1, not '1.5'"),
        (["report", "a", "--output", "b", "--device-memory-gb", "inf"], "must be a number of at least 0, not 'inf'"),
    ],
)
def test_numbers_out_of_bounds_are_refused(command, capsys, arguments, says):
    with pytest.raises(SystemExit, match="2"):
        command(*arguments)
    assert says in capsys.readouterr().err


def test_advise_prints_json(command):
    folder = f"{ROOT}/outputs/reference/h200/v41"
    code, out, _ = command("advise", folder, "--model=deepseek_v41_flash", "--json")
    advice = advise(load_results(folder), "deepseek_v41_flash", decode=64, prefill=8192, device_memory_gb=0)
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(asdict(advice))))


@pytest.mark.slow
def test_advise_answers_for_all_that_a_folder_holds(command):
    folder = f"{ROOT}/outputs/reference/h200"
    code, out, _ = command("advise", folder)
    heads = [line for line in out.splitlines() if " of tables" in line]
    assert (code, [head.split(",")[0] for head in heads]) == (0, ["deepseek_v41_flash", "demo", "demo", "demo"])
    code, out, _ = command("advise", folder, "--json")
    assert [one["model"] for one in json.loads(out)] == ["deepseek_v41_flash", "demo", "demo", "demo"]
    assert len({json.dumps(one["about"]) for one in json.loads(out)}) == 4, "about tells them apart"
    code, out, _ = command("advise", folder, "--ids", "random", "--only", "row_bytes=512", "--json")
    assert (code, json.loads(out)["about"]["row_bytes"]) == (0, "512"), "one is an object"


def test_advise_says_beside_json_what_it_does_not_answer(command):
    code, out, err = command("advise", f"{ROOT}/outputs/reference/h200_tuning", "--json")
    assert (code, len(json.loads(out))) == (0, 2)
    assert err.count("no advice: the data hold no measured `full`") == 4


@pytest.mark.parametrize("choices", [["strategy=uva"], ["strategy=uva", "row_bytes=128", "history=True"]])
def test_only_some_rows_are_kept(command, choices):
    only = [argument for choice in choices for argument in ("--only", choice)]
    code, out, _ = command("summary", STRATEGIES, "seq_len", "--case", "full", "--columns", "strategy", *only)
    assert code == 0
    assert out.startswith("| seq_len | uva |")


def test_several_values_of_one_column_are_kept(command):
    only = ["--only", "strategy=uva", "--only", "strategy=device", "--only", "seq_len=1"]
    _, out, _ = command("summary", STRATEGIES, "seq_len", "--case", "full", "--columns", "strategy", *only)
    head, _, line = out.splitlines()
    assert (head, line.split()[1]) == ("| seq_len | device | uva |", "1")


def test_an_empty_folder_is_refused(command, tmp_path):
    for arguments in (["compare", str(tmp_path), str(tmp_path)], ["summary", str(tmp_path)]):
        code, _, err = command(*arguments)
        assert (code, err.startswith("refused: ")) == (2, True)


@pytest.mark.slow
def test_analysis_takes_no_pytorch():
    code = "import sys, engram_exp, engram_exp.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_two_runs_of_a_value_are_compared_by_number_too(command, tmp_path):
    frame = pd.read_csv(f"{STRATEGIES}/0/results.csv")
    for run, threads in (("0", 8), ("1", 16)):
        (tmp_path / run).mkdir()
        frame.assign(threads=threads, run_id=run).to_csv(tmp_path / run / "results.csv", index=False)
    code, out, err = command("compare", "--by", "threads", "--folder", str(tmp_path), "8", "16")
    assert code == 0, err
    assert "1.000" in out


def test_null_is_typed_as_it_is_printed(command):
    launch = str(ROOT / "outputs/reference/h200_tuning/launch")
    code, out, err = command("compare", "--by", "programs", "--folder", launch, "null", "264")
    assert code == 0, err
    assert "full" in out
    code, _, err = command("summary", launch, "seq_len", "--only", "programs=null")
    assert code == 0, err


@pytest.mark.slow
def test_the_command_says_where_the_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["engram_exp", "report", str(H200 / "text"), "--output", str(tmp_path)])
    assert main() == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
