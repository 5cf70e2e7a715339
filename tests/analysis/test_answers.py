"""Answers for everything that a campaign is about: each subject, the production model first, and why there is none."""

import pandas as pd
import pytest
from common import ROOT
from made_up import rows, three

from engram_exp import load_results
from engram_exp.analysis.advice import AdviceError
from engram_exp.analysis.advice_in_words import certainty, lines_of, lines_of_all
from engram_exp.analysis.answers import PRODUCTION, advise_all

H200 = ROOT / "outputs/reference/h200"
ASKED = {"decode": 64, "prefill": 65536, "device_memory_gb": 0}


def answers(*frames, **more):
    return advise_all(pd.concat(frames), **{**ASKED, **more})


@pytest.mark.slow
def test_every_subject_is_answered_the_weightiest_first():
    found = answers(
        three(tokens="random"),
        three(device="cpu", cpu_name="small", model=PRODUCTION),
        three(),
        three(model=PRODUCTION, tokens="random"),
        three(model=PRODUCTION),
    )
    told = [(one.subject.rows["model"].iloc[0], one.subject.rows["tokens"].iloc[0]) for one in found]
    assert told == [
        (PRODUCTION, "text"), (PRODUCTION, "random"), ("demo", "text"), ("demo", "random"), (PRODUCTION, "text")
    ]  # fmt: skip
    assert [one.advice is None for one in found] == [False] * 4 + [True]
    (refusal,) = (line for line in lines_of_all(found) if "no advice" in line)
    assert refusal.startswith(f"{PRODUCTION}, bfloat16, text tokens, small: no advice: device=cpu")


@pytest.mark.slow
def test_what_is_asked_for_narrows():
    frames = three(), three(tokens="random"), three(dtype="fp8")
    assert len(answers(*frames)) == 3
    assert len(answers(*frames, dtype="bfloat16")) == 2
    (one,) = answers(*frames, dtype="bfloat16", ids="random")
    assert (one.advice.ids, one.advice.about["tokens"]) == ("random", "random")
    with pytest.raises(AdviceError, match="ids=ids: not measured; the data hold random, text"):
        answers(*frames, ids="ids")


@pytest.mark.slow
def test_subjects_without_advice_say_why_beside_the_others():
    only_device = rows("device", {64: 1.0}, dtype="fp8")
    _, refused = answers(three(), only_device)
    assert refused.advice is None
    assert refused.why_none.startswith("device_memory_gb=0: nothing that was measured fits; the nearest is device")
    lookups = rows("uva", {64: 1.0}, case="lookup", dtype="float16")
    assert answers(three(), lookups)[-1].why_none == "the data hold no measured `full`, nor a `step` beside a `ready`"


def test_where_nothing_is_answered_it_is_refused():
    with pytest.raises(AdviceError, match=r"^device=cpu in all of these runs"):
        answers(three(device="cpu"), three(device="cpu", dtype="fp8"))
    with pytest.raises(
        AdviceError, match=r"(?s)^demo, fp8, text tokens: device_memory.*\ndemo, bfloat16.*: device=cpu"
    ):
        answers(three(device="cpu"), rows("device", {64: 1.0}, dtype="fp8"))


@pytest.mark.slow
def test_rows_that_do_not_count_decide_nothing():
    fast = three(status="suspect")
    fast = fast.assign(wall_ms_median=fast["wall_ms_median"] / 1000)
    (one,) = answers(three(), fast)
    assert one.advice == answers(three())[0].advice


@pytest.mark.slow
def test_notes_for_all_stand_once_behind_the_last():
    found = answers(three(), three(dtype="fp8", table_scale=0.1))
    lines = lines_of_all(found)
    assert sum(line.startswith("note: sizes with fewer") for line in lines) == 1
    assert sum(line.startswith("note: vLLM 0.33.0 as uva") for line in lines) == 1
    (own,) = (number for number, line in enumerate(lines) if "table_scale" in line and line.startswith("note"))
    (shared,) = (number for number, line in enumerate(lines) if line.startswith("note: sizes with fewer"))
    assert own < shared
    alone = answers(three())
    assert lines_of_all(alone) == lines_of(alone[0].advice)


@pytest.mark.slow
def test_how_sure_a_choice_is():
    def sure(*frames, **sizes):
        (one,) = answers(*frames, **sizes)
        return [certainty(choice) for choice in one.advice.choices]

    once = "ahead of kv_on_gpu by intervals of fewer than 4 runs"
    assert sure(three(run_id="a"))[0] == once
    assert sure(three(run_id="a"), decode=4096)[0] == "undecided against kv_on_gpu"
    four = [three(run_id=str(number)) for number in range(4)]
    assert sure(*four, decode=4096) == ["ahead of kv_on_gpu", "ahead of uva"]
    assert sure(three(), rows("kv_on_cpu", {16: 9.0}), decode=16)[0] == (
        "nothing else that fits was measured there; not measured there: kv_on_gpu, uva"
    )
    assert sure(three(), decode=8)[0] == "not measured; the nearest that was: 1 and 64"
    assert sure(three(), rows("uva", {16: 0.1}), rows("kv_on_gpu", {16: 0.3}), decode=32)[0].endswith("; interpolated")


@pytest.mark.slow
def test_the_published_campaign_is_answered_subject_by_subject():
    found = advise_all(load_results(H200), decode=64, prefill=8192, device_memory_gb=0)
    first = found[0].advice
    assert (first.model, first.about["row_bytes"], first.layers) == (PRODUCTION, "264", 2)
    assert all(one.advice for one in found)
    assert (
        len(found)
        == load_results(H200).query("case == 'full'")[["model", "tokens", "row_bytes"]].drop_duplicates().shape[0]
    )


def test_stages_that_were_timed_in_graphs_beside_a_full_are_no_subject_of_their_own():
    lookups = rows("uva", {1: 0.01, 64: 0.02}, case="lookup", graph_calls=8)
    (one,) = answers(three(graph_calls=0), lookups)
    (plain,) = answers(three(graph_calls=0))
    assert one.advice.choices == plain.advice.choices
    assert one.subject.label == plain.subject.label
