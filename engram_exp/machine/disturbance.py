"""What shows that a machine was not this run's alone: other processes' load, preemptions, the clock of the GPU."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

# Involuntary switches for each second of timing and each thread. Two threads on two idle cores of a virtual machine had
# 13 to 19, since pools of threads take turns, too; those that shared their cores with another process 50 to 105.
PREEMPTED_PER_S = 30
# A switch spoils the sample it falls into, and a median stands while few are: fewer than this share says nothing.
SPOILED_SAMPLES = 0.1
LEAST_S = 0.1  # that a load is watched for: the kernel counts in hundredths of a second


def preemptions() -> int:
    """How often another process took a CPU from a thread of this one, since this one began (getrusage(2)). Asking takes
    about a microsecond."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def is_disturbed(switches: Any, samples: Any, seconds: Any, threads: Any) -> Any:
    """Whether others took the CPUs often enough to be seen in a median: numbers, or columns of them.

    Args:
        switches: involuntary ones of all threads during the samples.
        samples, seconds: of the case, in all.
        threads: of the run.
    """
    return (switches > PREEMPTED_PER_S * threads * seconds) & (switches > SPOILED_SAMPLES * samples)


class LoadMeter:
    """Watches from now on who uses the CPUs that this process may run on, at no cost meanwhile.

    Start it when a run starts and read it before the run measures: what others use then, they may use later, too.

    Args:
        cpus: that it may use; None: those of this thread, which a library may tie to one of them once it is imported.
    """

    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        self.cpus = sorted(os.sched_getaffinity(0)) if cpus is None else list(cpus)
        self.began = self._now()

    def read(self) -> dict[str, Any]:
        """The load since the meter was started, at least `LEAST_S` ago (it waits if need be).

        Returns:
            seconds: how long that was.
            load_average_1min: threads that ran or wanted to in the last minute, on all of the machine.
            busy_share: of each usable CPU, in ascending order, this process included; a hypervisor's steal counts.
            others_share: of the usable CPUs together, without this process, from 0 to 1.
        """
        time.sleep(max(0.0, self.began[0] + LEAST_S - time.perf_counter()))
        (began, own, before), (ended, own_now, after) = self.began, self._now()
        busy = [_busy_share(*pair) for pair in zip(before, after, strict=True)]
        own_share = (own_now - own) / (ended - began) / len(busy)
        return {
            "seconds": round(ended - began, 3),
            "load_average_1min": os.getloadavg()[0],
            "busy_share": [round(share, 3) for share in busy],
            "others_share": round(min(1.0, max(0.0, sum(busy) / len(busy) - own_share)), 3),
        }

    def _now(self) -> tuple[float, float, list[Any]]:
        times = psutil.cpu_times(percpu=True)
        usable = [times[cpu] for cpu in self.cpus if cpu < len(times)]  # CPUs may be off, or hidden by a container
        return time.perf_counter(), time.process_time(), usable or times


def _busy_share(before: Any, after: Any) -> float:
    """Of one CPU between two looks at its times (proc_stat(5)); guests are part of user."""
    passed = {name: getattr(after, name) - getattr(before, name) for name in after._fields if "guest" not in name}
    idle = passed["idle"] + passed.get("iowait", 0.0)
    total = sum(passed.values())
    return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else 0.0


class SmClock:
    """Reads the clock of a GPU's multiprocessors. A call takes tens of microseconds to a millisecond.

    Args:
        uuid: of the GPU as CUDA tells it. One that the driver cannot be asked about, such as a part of one, reads None.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml

        self.nvml, self.gpu = pynvml, None
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self.gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")

    def mhz(self) -> int | None:
        """The clock now, in MHz; None where it cannot be asked for."""
        if self.gpu is None:
            return None
        try:
            return int(self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM))
        except self.nvml.NVMLError:
            return None
