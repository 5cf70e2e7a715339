"""What the user sees at the end of a sweep."""

import pandas as pd

from engram_exp.results.schema import COLUMNS
from engram_exp.run.terminal import Terminal


def summary(capsys, *changes):
    base = dict.fromkeys(COLUMNS, "") | {"case": "full", "status": "ok", "wall_ms_median": 1.0}
    frame = pd.DataFrame([{**base, "run_id": str(n), **change} for n, change in enumerate(changes)])
    Terminal().summary(frame)
    return [line.split() for line in capsys.readouterr().out.splitlines()[2:]]


def test_what_was_set_is_shown_where_it_varies(capsys):
    head, *lines = summary(capsys, {"options": "model.hc_mult=1"}, {})
    assert head == ["options", "full"]
    assert lines == [["model.hc_mult=1", "1.000"], ["1.000"]]


def test_what_does_not_apply_everywhere_tells_no_runs_apart(capsys):
    head, *_ = summary(capsys, {"programs": 8, "strategy": "uva"}, {"strategy": "kv_on_gpu"})
    assert head == ["strategy", "full"]


def test_a_suspect_time_is_not_shown(capsys):
    assert summary(capsys, {"status": "suspect"}) == [["full"], ["suspect"]]
