"""What a step must expose at least, and when what it exposed is not to be believed."""

import pytest
from common import TINY
from in_step import CASES, DECODE
from places import parts_of

from engram_exp.measure.limits import Limits
from engram_exp.measure.rates import Limit
from engram_exp.run.exposed import exposed_verdict, least_exposed
from engram_exp.vocabulary import SUSPECT

pytestmark = pytest.mark.usefixtures("few_looks")
QUICK = ("iterations=1", "steps_per_sample=1", "batches=1")


@pytest.mark.parametrize(
    ("windows_ms", "more", "least"),
    [
        ((0.1, 5.0), (), 0.9),  # the rows of a layer take 1 ms: those of the first come 0.9 late
        ((5.0, 1.5), (), 0.5),  # those of both come 0.5 late to the second
        ((1.5, 2.5), (), 0.0),
        ((0.1, 5.0), ("prefetch.where=inline",), None),
        ((0.1, 5.0), ("strategies.3=kv_on_cpu",), None),  # the device projects in `ready` only: that may be saved
        ((0.1, 5.0), ("seq_len=5", "prefetch.lead=previous_step"), None),
    ],
)
def test_what_must_be_exposed_follows_from_limits_and_windows(configure, monkeypatch, windows_ms, more, least):
    plan = parts_of(configure(*TINY, *DECODE, "strategy=kv_on_gpu", *more, CASES)).plan
    row_ids = plan.tokens * plan.geometry.columns
    monkeypatch.setattr(Limits, "of", lambda self, work, load: Limit(work["host rows"] / row_ids, "host rows"))
    assert least_exposed(plan.step, windows_ms) is None, "limits=none"
    plan.limits = Limits({})
    found = least_exposed(plan.step, windows_ms)
    assert found == (None if least is None else (pytest.approx(least), "host rows"))


def test_a_step_in_which_rows_came_sooner_than_they_can_is_suspect(run_inline, monkeypatch):
    monkeypatch.setattr("engram_exp.run.step_bench.least_exposed", lambda *_: Limit(1e6, "link"))
    monkeypatch.setattr("engram_exp.run.exposed.paired", lambda *_: (1.0, 0.5, 1.5))  # of few samples there is none
    rows = {row["case"]: row for row in run_inline(*DECODE, "strategy=kv_on_gpu", "cases=[ready,step]", *QUICK)}
    assert rows["step"]["exposed_limit_ms"] == 1e6
    assert [rows[case]["status"] for case in ("ready", "step")] == ["ok", SUSPECT]
    assert "takes at most 1.5 ms longer" in rows["step"]["error"]
    assert "must take 1e+06 ms, by the link" in rows["step"]["error"]


@pytest.mark.parametrize(
    ("high_ms", "least_ms", "status"),
    [(None, 9.0, None), (0.5, 0.4, None), (0.5, 0.9, None), (0.5, 2.0, SUSPECT), (-3.0, 0.0, SUSPECT)],
)
def test_a_tenth_of_a_step_may_be_a_decoder_that_was_quicker(high_ms, least_ms, status):
    """Of 10 ms with rows in place; what the limit tells of is a difference of two steps, each of which may be so."""
    assert exposed_verdict(10.0, high_ms, Limit(least_ms, "link")).get("status") == status


def test_what_rests_on_a_suspect_time_is_not_told(run_inline, monkeypatch):
    def beaten(work):
        return 0.0 if "link" in work or "host rows" in work else 1e9  # what fetches rows could have been so fast

    monkeypatch.setattr("engram_exp.run.rows.possible_ms", beaten)
    rows = {row["case"]: row for row in run_inline(*DECODE, CASES)}
    assert (rows["ready"]["status"], rows["step"]["status"]) == ("suspect", "ok")
    assert rows["step"].get("exposed_ms_median") is None
