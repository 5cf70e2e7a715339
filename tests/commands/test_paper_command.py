"""`python -m engram_exp paper`: a made-up campaign in, the paper's table out."""

import argparse
import io
from statistics import mean

import pandas as pd
import pytest
from common import ROOT
from made_up import LONGER, step_campaign
from omegaconf import OmegaConf

from engram_exp.__main__ import main
from engram_exp.analysis.replay import DECODE, PROMPT, Replay, Shape, draw, steps_of
from engram_exp.commands.paper import add_arguments
from engram_exp.results.write import write_run

WORKLOAD = ("--sequences=9", "--shortest=4", "--longest=9", "--max-sequences=4", "--max-tokens=16")


@pytest.fixture
def paper(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["engram_exp", "paper", *map(str, arguments)])
        return main(), *capsys.readouterr()

    return call


def written(folder, longer=LONGER, **columns):
    """The folder of a campaign."""
    rows, samples = step_campaign(longer, **columns)
    of_run = dict(iter(samples.groupby("run_id")))
    for run_id, of_case in rows.groupby("run_id"):
        (folder / run_id).mkdir(parents=True)
        write_run(folder / run_id, {}, of_case.to_dict("records"), of_run[run_id].to_dict("records"))
    return folder


def test_a_campaign_gives_the_table(paper, tmp_path):
    for decoder in ("dense_4b", "dense_8b"):
        written(tmp_path, decoder=decoder)
        written(tmp_path, LONGER | {"step": 2.0}, decoder=decoder, strategy="kv_on_gpu")
    code, out, _ = paper(tmp_path, *WORKLOAD)
    assert code == 0
    for decoder, loss in (("dense_4b", "1.92"), ("dense_8b", "2.78")):
        lines = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if decoder in line]
        told = {line[2]: line[-6:-1] for line in lines}
        assert told["uva"] == ["20.00", "20.00 .. 20.00", "12.00", "12.00 .. 12.00", loss]
        assert told["kv_on_gpu"] == ["50.00", "50.00 .. 50.00", "45.00", "45.00 .. 45.00", loss]
    assert "9 sequences, prompts and outputs of 4 to 9 tokens each (seed 0), " in out
    assert "intervals are of one process a shape: what rounds differ in; the paper gives none" in out
    assert "table_scale is below 1" not in out


def test_what_lines_share_stands_below_a_table_that_fits_a_terminal(paper, tmp_path):
    written(tmp_path, decoder="dense_8b", row_bytes=264, fusion="gated")
    written(tmp_path, decoder="dense_4b", row_bytes=264, options="model.hidden_size=2560", dtype="fp8")
    _, out, _ = paper(tmp_path, *WORKLOAD)
    table, _, below = out.partition("┘\n")
    assert [word for word in ("table_scale", "row_bytes", "options", "dtype", "fusion") if word in table] == []
    assert max(map(len, table.splitlines())) <= 120
    told = ["in all lines: table_scale=1, rows of 264 bytes", "dense_8b: fusion=gated"]
    assert sorted(below.splitlines()[:3]) == sorted([*told, "dense_4b: fp8, model.hidden_size=2560"])
    written(tmp_path, decoder="dense_4b", row_bytes=132, strategy="device")
    table, _, below = paper(tmp_path, *WORKLOAD)[1].partition("┘\n")
    assert "row_bytes" in table, "it differs between lines of one decoder"
    assert "bytes" not in below


def test_the_presets_measure_what_the_usual_workload_needs():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = parser.parse_args(["folder"])
    requests = draw(usual.sequences, usual.shortest, usual.longest, usual.seed)
    steps = list(steps_of(requests, usual.max_sequences, usual.max_tokens))
    swept = {}
    for kind, preset, key in ((DECODE, "paper", "batch_size"), (PROMPT, "paper_prompts", "seq_len")):
        params = OmegaConf.load(ROOT / f"conf/experiment/{preset}.yaml").hydra.sweeper.params
        swept[kind] = [Shape(kind, int(size)) for size in params[key].split(",")]
    assert params.batch_size == 1, "a prompt is one sequence"
    assert Replay.of(steps, [*swept[DECODE], *swept[PROMPT]]).tokens == sum(request.output for request in requests)
    contexts = [request.prompt + made for request in requests for made in range(1, request.output)]
    assert round(mean(contexts), -1) == 940, "as docs/paper.md says"


def test_csv_is_the_table_and_notes_stand_beside_it(paper, tmp_path):
    written(tmp_path, processes=2, table_scale=0.1)
    code, out, err = paper(tmp_path, *WORKLOAD, "--prompt-share=0.5", "--csv")
    found = pd.read_csv(io.StringIO(out))
    assert (code, len(found), found["loss_percent"][0]) == (0, 1, pytest.approx(20))
    assert "9 sequences, 4 to 9 tokens, 0.5 of them a prompt (seed 0), " in err
    assert "intervals are of 2 processes a shape or more" in err
    assert "table_scale is below 1" in err


def test_few_rounds_and_mixed_code_are_told(paper, tmp_path):
    written(tmp_path / "a", rounds=5, git_sha="a")
    written(tmp_path / "b", rounds=5, git_sha="b", strategy="device")
    _, out, _ = paper(tmp_path, *WORKLOAD)
    few = ", ".join(f"decode steps of {sequences} sequences (5)" for sequences in (1, 2, 4))
    of = "dense_8b, device; dense_8b, uva"
    says = f"no interval ({of}): a process needs 6 rounds (a larger budget_s takes more), and has fewer of {few}, "
    assert f"{says}prompts of 4 tokens (5), prompts of 8 tokens (5) and 1 more\n" in out
    assert "steps of several git_sha are mixed" in out
    _, out, _ = paper(tmp_path, *WORKLOAD, "--only", "strategy=device")
    assert "mixed" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--max-sequences=8",),
            "refused: nothing is extrapolated, nor interpolated over a factor above 4; decode",
        ),
        (("--max-tokens=8",), "refused: a prompt has 9 tokens, and a step takes 8 at most: --max-tokens"),
        (("--longest=3",), "refused: lengths of 4 to 3 tokens: must ascend from 1 or more"),
    ],
)
def test_refusals(paper, tmp_path, arguments, says):
    code, _, err = paper(written(tmp_path), *WORKLOAD, *arguments)
    assert (code, err.startswith(says)) == (2, True), err


def test_a_campaign_without_steps_is_refused(paper):
    code, _, err = paper(ROOT / "outputs/reference/h200/strategies")
    assert code == 2
    assert "refused: the data hold no run that measured decoder, ready, step; `python run.py experiment=paper`" in err


@pytest.mark.parametrize("share", ["0", "1", "x", "nan"])
def test_a_share_that_is_none_is_refused(paper, capsys, share):
    with pytest.raises(SystemExit, match="2"):
        paper("folder", f"--prompt-share={share}")
    assert "argument --prompt-share: must be " in capsys.readouterr().err
