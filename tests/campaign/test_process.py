"""Which signals end a campaign."""

import signal

import pytest

from engram_exp.campaign.process import Stopped, stop_on


@pytest.fixture(autouse=True)
def as_before():
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_it_in_order():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop_on(signal.SIGHUP)
    with pytest.raises(Stopped, match="interrupted by SIGHUP"):
        signal.raise_signal(signal.SIGHUP)


def test_a_signal_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_on(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
