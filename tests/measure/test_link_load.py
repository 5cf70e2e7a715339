"""Blocks cross the link at a rate as long as samples are taken, and no longer."""

import os
import threading

import pytest
import torch
from common import ROOT
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from engram_exp.errors import ConfigError
from engram_exp.measure import link_load as module
from engram_exp.measure.link_load import MOST_PARTS, POOL_BYTES, TURN_S, Copies, Pace, link_load, paced, turn_of

CPUS = os.sched_getaffinity(0)
CPU = torch.device("cpu")


class Turns:
    """Turns that tell what became of them."""

    def __init__(self, error_at=None):
        self.error_at, self.taken, self.threads, self.reached = error_at, 0, set(), threading.Event()

    def __call__(self):
        try:
            while True:
                self.threads.add(threading.get_ident())
                self.taken += 1
                if self.taken == self.error_at:
                    raise ValueError("lost")
                if self.taken == 3:
                    self.reached.set()
                yield
        finally:
            self.threads.add(threading.get_ident())
            self.reached.set()
            self.closed = True


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "paced"]


def test_turns_are_taken_in_a_thread_of_their_own_until_they_are_left():
    turns = Turns()
    with paced(turns(), 1e-4, CPUS) as pace:
        assert turns.reached.wait(60)
        assert [thread.daemon for thread in alive()] == [True], "it keeps no process from ending"
    assert turns.closed
    assert not alive()
    assert len(turns.threads - {threading.get_ident()}) == len(turns.threads) == 1
    assert pace.turns == turns.taken >= 3
    assert 0 < pace.per_s() <= 1e4


def test_turns_end_with_an_error_too():
    turns = Turns()
    with pytest.raises(KeyError, match="missing"), paced(turns(), 1e-4, CPUS):
        raise KeyError("missing" if turns.reached.wait(60) else "too late")
    assert turns.closed
    assert not alive()


def test_what_a_turn_raises_is_raised_on_leaving():
    turns = Turns(error_at=2)
    with pytest.raises(ValueError, match="lost"), paced(turns(), 1e-4, CPUS) as pace:
        assert turns.reached.wait(60)
    assert (turns.taken, pace.turns) == (2, 1)
    assert not alive()


class Simulated:
    """Time that passes only in waiting and in turns."""

    def __init__(self, patch, durations_s, end_s):
        self.now_s, self.end_s, self.durations_s, self.begun_s = 0.0, end_s, durations_s, []
        patch.setattr(module, "perf_counter", lambda: self.now_s)

    def wait(self, seconds):
        self.now_s += max(0.0, seconds)
        return self.now_s >= self.end_s

    def turns(self):
        for duration_s in self.durations_s:
            self.begun_s.append(self.now_s)
            self.now_s += duration_s
            yield
        self.end_s = self.now_s
        yield


@given(durations=st.lists(st.integers(0, 5000), min_size=1, max_size=50), period=st.integers(1, 2000))
def test_turns_come_at_their_time_and_late_ones_are_not_made_up_for(durations, period):
    with pytest.MonkeyPatch.context() as patch:
        time = Simulated(patch, durations, end_s=1e9)
        module._take(time.turns(), period, CPUS, time, Pace())
    wanted, due, free = [], 0, 0
    for duration in durations:
        due = max(due + period, free)
        wanted.append(due)
        free = due + duration
    assert time.begun_s == wanted


@given(gb_per_s=st.floats(1e-6, 1e6), block_kib=st.integers(1, 2**22))
def test_a_turn_is_rare_and_its_blocks_fit_in_the_pool(gb_per_s, block_kib):
    block_bytes = block_kib * 1024
    blocks, parts = turn_of(gb_per_s, block_bytes)
    assert blocks >= 1
    assert 1 <= parts <= MOST_PARTS
    assert parts * blocks * block_bytes <= max(POOL_BYTES, block_bytes)
    period_s = 2 * blocks * block_bytes / (gb_per_s * 1e9)
    assert period_s >= TURN_S * (1 - 1e-9) or (blocks + 1) * block_bytes > POOL_BYTES


def test_a_block_is_what_the_configuration_says_it_is():
    decoder = OmegaConf.load(ROOT / "conf/decoder/dense_8b.yaml")
    values = 16 * decoder.layers * 2 * decoder.kv_heads * decoder.head_dim
    assert OmegaConf.load(ROOT / "conf/config.yaml").link_load_block_kib * 1024 == values * 2


def test_without_a_load_there_is_none_and_without_a_link_no_load():
    with link_load(CPU, 0, 1024, CPUS) as moved:
        assert moved is None
        assert not alive()
    with pytest.raises(ConfigError, match=r"^link_load_gb_per_s=2: there is no link to load: the device is cpu"):
        link_load(CPU, 2, 1024, CPUS).__enter__()


@pytest.mark.accelerator
def test_blocks_go_to_the_device_and_come_back_unchanged():
    device, kib = torch.device("cuda"), 256
    copies = Copies(device, 4.0, kib * 1024)
    torch.cuda.synchronize()
    before = copies.memory.bytes.clone()
    copies.block.zero_()
    turns = copies.turns()
    for _ in range(2 * len(copies.parts) + 1):
        next(turns)
    turns.close()
    assert copies.copied.query(), "closing waits for the last copies"
    last_block = copies.parts[0][0][-1]
    assert torch.equal(copies.block.cpu(), last_block), "the first part comes again behind the last"
    assert torch.equal(copies.memory.bytes, before)


@pytest.mark.accelerator
@pytest.mark.slow
def test_a_rate_that_the_link_has_is_reached_and_none_is_exceeded():
    with link_load(torch.device("cuda"), 1.0, 2304 * 1024, CPUS) as slow:
        threading.Event().wait(0.5)
    with link_load(torch.device("cuda"), 10_000.0, 2304 * 1024, CPUS) as impossible:
        threading.Event().wait(0.5)
    assert 0 < slow.reached_gb_per_s <= 1.0
    assert slow.reached_gb_per_s < impossible.reached_gb_per_s < 10_000
