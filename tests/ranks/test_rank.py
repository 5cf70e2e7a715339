"""What a rank is given, and what its launcher makes of its end."""

import json
import signal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.errors import OtherRankError
from engram_exp.run.launch import _cause, in_words
from engram_exp.run.worker import share_of

CPUS = st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True).map(sorted)


@given(CPUS, st.integers(1, 6))
def test_ranks_of_a_host_share_its_cpus(cpus, size):
    shares = [share_of(cpus, rank, size) for rank in range(size)]
    if len(cpus) < size:
        assert shares == [cpus] * size
    else:
        assert {len(share) for share in shares} == {len(cpus) // size}
        assert len({cpu for share in shares for cpu in share}) == size * (len(cpus) // size)


def ended(exitcode, **told):
    message = {"message": json.dumps(told)} if told else "<NONE>"
    return SimpleNamespace(exitcode=exitcode, error_file_data={"message": message})


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ({0: ended(-signal.SIGTERM), 1: ended(-signal.SIGKILL)}, ("crash", "rank 1 was killed by SIGKILL")),
        ({0: ended(-signal.SIGTERM), 2: ended(3)}, ("crash", "rank 2 exited with code 3")),
        ({1: ended(-signal.SIGTERM)}, ("crash", "rank 1 was killed by SIGTERM")),
        (
            {0: ended(-signal.SIGTERM), 1: ended(1, status="oom_host", text="no room", of_run=False)},
            ("oom_host", "rank 1: no room"),
        ),
        (
            {0: ended(1, status="timeout", text="rank 1 kept", of_run=True), 1: ended(-signal.SIGKILL)},
            ("timeout", "rank 1 kept"),
        ),
    ],
)
def test_whoever_ended_a_run_is_named(failures, words):
    assert in_words(*_cause(failures)) == words


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ([None, ("mismatch", "wrong")], "rank 1: wrong"),
        ([("crash", "a"), ("crash", "b"), ("crash", "a")], "ranks 0, 2: a"),
        ([("crash", "a")] * 2, "a"),
    ],
)
def test_an_error_says_whose_it_is(told, text):
    assert str(OtherRankError(told)) == text
