"""The paper's table, from made-up steps: what follows from them, what its intervals hold, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from made_up import LONGER, step_campaign

from engram_exp.analysis.paper import PaperError, paper_table
from engram_exp.analysis.replay import ReplayError, Request, steps_of

STEPS = list(steps_of([Request(4 + number % 9, 1 + number) for number in range(7)], most_sequences=4, most_tokens=16))


def line_of(*arguments, **columns):
    (line,) = paper_table(*step_campaign(*arguments, **columns), STEPS).to_dict("records")
    return line


@pytest.mark.parametrize(("decoder", "paper"), [("dense_4b", 1.92), ("dense_8b", 2.78), ("tiny", np.nan)])
def test_a_step_that_takes_a_quarter_longer_costs_a_fifth(decoder, paper):
    line = line_of(decoder=decoder)
    assert line["loss_percent"] == pytest.approx(20)
    assert line["exposed_percent"] == pytest.approx(100 * (1 - 1.1 / 1.25))
    assert line["tokens_per_s_without"] / line["tokens_per_s_in_place"] == pytest.approx(1.1)
    assert line["tokens_per_s_without"] / line["tokens_per_s"] == pytest.approx(1.25)
    assert line["processes"] == 1
    assert line["paper_loss_percent"] == pytest.approx(paper, abs=0.005, nan_ok=True)


def test_what_all_cases_of_a_round_share_is_no_uncertainty():
    line = line_of(noise=0.5)
    assert (line["loss_lo"], line["loss_hi"]) == pytest.approx((20, 20))
    assert (line["exposed_lo"], line["exposed_hi"]) == pytest.approx((12, 12))


def test_what_differs_between_rounds_is():
    frame, samples = step_campaign()
    of_step = samples["case"] == "step"
    samples.loc[of_step, "wall_ms"] *= np.random.default_rng(1).uniform(0.9, 1.1, of_step.sum())
    (line,) = paper_table(frame, samples, STEPS).to_dict("records")
    assert line["loss_lo"] < 19.5
    assert line["loss_hi"] > 20.5
    again = paper_table(frame, samples, STEPS).to_dict("records")
    assert again[0]["loss_lo"] == line["loss_lo"], "the same seed draws the same"


def test_what_differs_between_processes_is_too():
    longer = [LONGER | {"step": 1.1 + 0.1 * process} for process in range(5)]
    line = line_of(longer, processes=5)
    assert line["processes"] == 5
    assert line["loss_lo"] < line["loss_percent"] < line["loss_hi"]
    assert line["loss_lo"] > 100 * (1 - 1 / 1.1), "no process lost so little"
    assert line["loss_hi"] < 100 * (1 - 1 / 1.5)


@pytest.mark.parametrize(("left", "few"), [(5, "prompts of 8 tokens (5)"), (0, "prompts of 8 tokens (0)"), (6, "")])
def test_too_few_samples_of_a_shape_carry_no_interval_and_it_is_named(left, few):
    frame, samples = step_campaign(processes=2)
    of_one = samples["run_id"].str.endswith("_1_8_1_")
    (line,) = paper_table(frame, samples[~of_one | (samples["iteration"] < left)], STEPS).to_dict("records")
    assert (line["loss_percent"], line["few_rounds"]) == (pytest.approx(20), few)
    bounds = [line[f"{name}_{end}"] for name in ("loss", "exposed") for end in ("lo", "hi")]
    assert np.isnan(bounds).all() if few else np.isfinite(bounds).all()


def test_there_is_a_line_for_each_decoder_and_strategy():
    parts = [step_campaign(decoder=decoder, strategy=strategy) for decoder in ("dense_4b", "tiny") for strategy in "ab"]
    found = paper_table(*(pd.concat(each) for each in zip(*parts, strict=True)), STEPS)
    assert list(zip(found["decoder"], found["strategy"], strict=True)) == [
        ("dense_4b", "a"), ("dense_4b", "b"), ("tiny", "a"), ("tiny", "b"),
    ]  # fmt: skip


def test_runs_that_are_not_steps_are_left_out():
    frame, samples = step_campaign()
    other = frame[frame["batch_size"] == 4].assign(run_id="other", seq_len=64)
    assert len(paper_table(pd.concat([frame, other]), samples, STEPS)) == 1


def test_samples_of_a_copied_run_count_once():
    frame, samples = step_campaign()
    pd.testing.assert_frame_equal(
        paper_table(frame, pd.concat([samples, samples]), STEPS), paper_table(frame, samples, STEPS)
    )


def test_a_shape_of_which_a_case_failed_was_not_measured():
    frame, samples = step_campaign()
    failed = (frame["case"] == "ready") & (frame["seq_len"] == 16)
    frame.loc[failed, "status"] = "mismatch"
    with pytest.raises(ReplayError, match=r"prompts of .*: measured are 4, 8$"):
        paper_table(frame, samples, STEPS)


def test_a_campaign_without_steps_is_refused():
    frame, samples = step_campaign({"decoder": 1.0, "ready": 1.0})
    says = r"^the data hold no run that measured decoder, ready, step; `python run.py experiment=paper` and"
    with pytest.raises(PaperError, match=says):
        paper_table(frame, samples, STEPS)


def test_several_ways_of_one_shape_are_refused():
    parts = [step_campaign(prefetch=where) for where in ("beside", "inline")]
    says = r"^strategy=uva, batch_size=1 was measured in several ways \(prefetch: beside, inline\); keep one \("
    with pytest.raises(PaperError, match=says):
        paper_table(*(pd.concat(each) for each in zip(*parts, strict=True)), STEPS)


def test_prompts_may_have_fewer_steps_in_a_sample_and_one_shape_has_as_many_in_each():
    frame, samples = step_campaign(processes=2)
    fewer = frame.assign(steps_per_sample=(frame["seq_len"] == 1) * 3 + 1)
    assert paper_table(fewer, samples, STEPS)["processes"].tolist() == [2]
    mixed = frame.assign(steps_per_sample=frame["run_id"].str.endswith("_0_") * 3 + 1)
    with pytest.raises(PaperError, match=r"was measured in several ways \(steps_per_sample: 1, 4\); keep one"):
        paper_table(mixed, samples, STEPS)
