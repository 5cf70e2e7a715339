"""A time that no machine, or not this one, can reach is suspect."""

from engram_exp import load_results
from engram_exp.measure.limits import POSSIBLE_PER_S, Limits
from engram_exp.measure.rates import Limit


def test_a_limit_that_is_beaten_marks_the_row(run_inline, tmp_path, monkeypatch, capsys):
    slow = Limits({"host_gb_per_s": {"1": 1e-6}, "host_rows_per_s": {"1": {"64": 1e-6}}})
    monkeypatch.setattr("engram_exp.run.known_limits.machine_limits", lambda *_, **__: slow)
    (row,) = run_inline("limits=cached", "cases=[hashing]", "timeout_s=1e12")
    assert row["status"] == "suspect"
    assert row["efficiency"] > 1.1
    frame = load_results(tmp_path)
    assert frame["status"][0] == "suspect"
    assert frame["wall_ms_median"][0] > 0, "the time stays to be looked at"
    assert "that the host memory of this machine takes: the limit is wrong" in frame["error"][0]
    assert "suspect" in capsys.readouterr().out


def test_within_noise_of_its_limit_a_row_is_good(run_inline, monkeypatch, capsys):
    def just_beaten(self, work, load):
        return Limit(1e9, "host memory")

    monkeypatch.setattr(Limits, "of", just_beaten)
    monkeypatch.setattr("engram_exp.run.known_limits.machine_limits", lambda *_, **__: Limits({}))
    monkeypatch.setattr("engram_exp.measure.limits.CLEARLY_BEATEN", 1e15)
    (row,) = run_inline("limits=cached", "cases=[hashing]", "timeout_s=1e12")
    assert row["status"] == "ok"
    assert "hashing: faster than its limit, but within what two measurements differ by" in capsys.readouterr().out


def test_without_limits_what_no_machine_can_do_marks_the_row(run_inline, monkeypatch):
    monkeypatch.setitem(POSSIBLE_PER_S, "host memory", 1.0)
    (row,) = run_inline("limits=none", "cases=[hashing]")
    assert row["status"] == "suspect"
    assert "that any machine takes for this work" in row["error"]
    assert row["limit_ms"] is None
