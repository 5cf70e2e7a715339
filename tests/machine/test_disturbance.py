"""A machine that is not ours alone shows it."""

import json
import os
import subprocess
import sys
import time
from collections import namedtuple

import pynvml
import pytest

from engram_exp.machine import disturbance
from engram_exp.machine.disturbance import LoadMeter, SmClock, preemptions

Times = namedtuple("Times", "user system idle iowait steal guest")


@pytest.fixture
def watched(monkeypatch):
    """The load of two CPUs over two seconds, in each of which this process computed for a share of a CPU."""

    def read(*passed, own_s):
        zero = [Times(0, 0, 0, 0, 0, 0)] * len(passed)
        looks = iter([(100.0, 5.0, zero), (102.0, 5.0 + own_s, list(passed))])
        monkeypatch.setattr(LoadMeter, "_now", lambda self: next(looks))
        return LoadMeter().read()

    return read


def test_load_is_that_of_others_without_our_own(watched):
    load = watched(Times(1.5, 0.3, 0.2, 0, 0, 0), Times(0.2, 0, 1.7, 0.1, 0, 0), own_s=1.0)
    assert load["seconds"] == 2.0
    assert load["busy_share"] == [0.9, 0.1]
    assert load["others_share"] == pytest.approx(0.25)  # half of the CPUs' time, less a quarter


def test_what_a_hypervisor_takes_counts_as_others_and_a_guest_only_once(watched):
    assert watched(Times(0, 0, 1.0, 0, 1.0, 0), own_s=0)["others_share"] == 0.5
    assert watched(Times(1.0, 0, 1.0, 0, 0, 1.0), own_s=0)["busy_share"] == [0.5]


def test_coarse_counters_give_shares_all_the_same(watched):
    assert watched(Times(0.01, 0, 0, 0, 0, 0), own_s=3.0)["others_share"] == 0.0
    assert watched(Times(0, 0, 0, 0, 0, 0), own_s=0)["busy_share"] == [0.0]


def test_this_machine_has_a_load():
    began = time.perf_counter()
    load = LoadMeter().read()
    assert time.perf_counter() - began >= disturbance.LEAST_S
    assert len(load["busy_share"]) == len(os.sched_getaffinity(0))
    assert all(0 <= share <= 1 for share in [*load["busy_share"], load["others_share"]])
    assert json.loads(json.dumps(load)) == load


def test_another_process_on_our_cpu_is_counted():
    ours, cpu = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        os.sched_setaffinity(0, [cpu])
        before, until = preemptions(), time.perf_counter() + 20
        while preemptions() == before and time.perf_counter() < until:
            pass
        assert preemptions() > before
    finally:
        os.sched_setaffinity(0, ours)
        other.kill()
        other.wait()


@pytest.fixture
def nvml(monkeypatch):
    asked = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: asked.append(uuid) or "handle")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda gpu, kind: {("handle", 1): 1980}[gpu, kind])
    return asked


@pytest.mark.parametrize("uuid", ["123-4", "GPU-123-4"])
def test_the_clock_is_that_of_the_gpu_that_cuda_names(nvml, uuid):
    assert SmClock(uuid).mhz() == 1980
    assert nvml == ["GPU-123-4"]


@pytest.mark.parametrize("missing", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetClockInfo"])
def test_a_driver_that_does_not_answer_leaves_no_clock(nvml, monkeypatch, missing):
    def refuse(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, missing, refuse)
    assert SmClock("123-4").mhz() is None


@pytest.mark.accelerator
def test_this_gpu_has_a_clock():
    import torch

    from engram_exp.measure.clock import Clock

    torch.zeros(1, device="cuda")
    assert Clock(torch.device("cuda")).sm_clock_mhz() > 100
