"""Reports as files: what they hold of the data, and what is refused."""

import json
import re
import shutil

import pandas as pd
import pytest
from common import H200

from engram_exp import report
from engram_exp.__main__ import main
from engram_exp.analysis.subjects import load_campaign, subjects
from engram_exp.pages.figures import figures
from engram_exp.pages.report import MOST_SUBJECTS, ReportError, _table
from engram_exp.results.write import write_run

WITHOUT_DIGESTS = shutil.ignore_patterns("environment.json")  # so that results can be edited

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unchecked run"),  # files are edited here, so without their digests
    pytest.mark.slow,  # drawing a page takes seconds
]


def test_a_campaign_about_many_things_shows_the_largest(tmp_path):
    for number in range(MOST_SUBJECTS + 2):
        shutil.copytree(H200 / "text/2", tmp_path / f"campaign/{number}", ignore=WITHOUT_DIGESTS)
        results = tmp_path / f"campaign/{number}/results.csv"
        text = results.read_text()
        results.write_text(
            text.replace(",text,", f",kind{number},").replace(text.split("\n")[1].split(",")[1], f"run{number}")
        )
    page = report(tmp_path / "campaign", tmp_path / "report").read_text()
    assert f"These are {MOST_SUBJECTS} kinds of runs, the weightiest; 2 others" in page
    assert len(re.findall("<h3>demo, bfloat16, kind[^:]*</h3>\n<p>", page)) == MOST_SUBJECTS
    assert f"kind{MOST_SUBJECTS + 1}" in page, "the table has all"


def test_what_was_left_out_is_listed(tmp_path):
    shutil.copytree(H200 / "text", tmp_path / "campaign", ignore=WITHOUT_DIGESTS)
    cut = tmp_path / "campaign/0/results.csv"
    cut.write_text(cut.read_text()[:-30])
    with pytest.warns(UserWarning, match="last line is cut"):
        page = report(tmp_path / "campaign", tmp_path / "report")
    for text in (page.read_text(), (page.parent / "summary.md").read_text()):
        assert "last line is cut" in text
        assert "unchecked runs: no readable environment.json" in text


def test_a_suspect_time_is_a_failure_and_nowhere_a_time(tmp_path):
    shutil.copytree(H200 / "text", tmp_path / "campaign")
    columns = {"strategy": "uva", "model": "demo", "batch_size": 64, "seq_len": 4096, "wall_ms_median": 0.0123456}
    row = {"run_id": "a", "status": "suspect", "case": "full", "error": "beats its limit", **columns}
    (tmp_path / "campaign/9").mkdir()
    write_run(tmp_path / "campaign/9", {}, [row])
    page = report(tmp_path / "campaign", tmp_path / "report").read_text()
    assert "beats its limit" in page
    assert "0.01235" not in page
    frame = load_campaign(H200 / "text")
    fast = frame.assign(run_id=frame["run_id"] + "b", status="suspect", wall_ms_median=1e-6, efficiency=9.0)
    both = pd.concat([frame, fast])
    drawn, again = (
        [figure.chart.to_dict()["datasets"] for figure in figures(rows, subjects(rows))] for rows in (frame, both)
    )
    assert drawn == again


def test_runs_that_differ_in_options_are_two_rows_and_two_subjects(tmp_path):
    frame = load_campaign(H200 / "text")
    other = frame.assign(run_id=frame["run_id"] + "b", options="model.hc_mult=1", wall_ms_median=2e-3)
    both = pd.concat([frame, other])
    of_one = [figure.chart.to_dict()["datasets"] for figure in figures(frame, subjects(frame))]
    of_both = [
        figure.chart.to_dict()["datasets"] for figure in figures(both, subjects(both)) if "hc_mult" not in figure.title
    ]
    assert of_one == of_both
    table, _ = _table(both)
    assert len(json.loads(table)["data"]) == 2 * len(frame)


def test_an_old_report_is_replaced(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("stages_99.svg", "mine.svg"):
        (tmp_path / "figures" / name).touch()
    report(H200 / "text", tmp_path)
    assert not (tmp_path / "figures/stages_99.svg").exists()
    assert (tmp_path / "figures/mine.svg").exists(), "not of a report"


def test_what_cannot_be_reported_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["engram_exp", "report", str(tmp_path), "--output", str(tmp_path / "out")])
    assert main() == 2
    assert "no results below it" in capsys.readouterr().err
    write_run(tmp_path, {}, [{"run_id": "a", "status": "crash", "case": "full"}])
    with pytest.raises(ReportError, match="nothing was measured; its rows are 1 crash"):
        report(tmp_path, tmp_path / "out")
    monkeypatch.setattr("engram_exp.pages.report.find_spec", lambda name: None)
    with pytest.raises(ReportError, match=r"altair, jinja2, vl_convert missing: pip install .*\[report\]"):
        report(H200, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_says_whose_code_it_mixes_and_lists_one_machine_once(tmp_path):
    for number in range(2):
        row = {"run_id": f"{number}", "status": "ok", "case": "full", "strategy": "uva", "wall_ms_median": 1.0}
        (tmp_path / f"{number}").mkdir()
        code = {"git_sha": f"sha{number}", "git_dirty": True}
        record = {"host": "vm", "load_before": {"others_share": number / 10}}
        write_run(tmp_path / f"{number}", record, [{**row, "batch_size": 64, "seq_len": 1, **code}])
    page = report(tmp_path, tmp_path / "out")
    summary = (page.parent / "summary.md").read_text()
    assert "note: medians of full: cells mix several git_sha: medians" in summary
    assert "git_sha: sha1; git_dirty: True" in summary
    assert "Environment 1 of 1<" in page.read_text(), "whatever else ran before"


def test_a_report_of_some_rows(tmp_path):
    page = report(H200 / "text", tmp_path, only=["strategy=uva"])
    assert "kv_on_cpu" not in re.search(r"const table = .*", page.read_text())[0]
