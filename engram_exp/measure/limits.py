"""The time that an amount of work takes at least: on this machine, and on any.

A limit is a bound, not a model: each resource is taken at the best rate that was measured for it alone, and a stage, or
the whole of a strategy, at its busiest resource, as if all others could work at the same time.
"""

from __future__ import annotations

from collections import Counter

from engram_exp.measure.rates import Limit, Load, Peaks, Work, resources
from engram_exp.vocabulary import DEVICE, HOST

# An efficiency above this is not noise. A limit is the fastest of several samples, and the same product, measured twice
# on a machine that others use too, differs by 6 %.
CLEARLY_BEATEN = 1.1

# More than any machine of today or tomorrow does in a second: caches and all sockets or chips of a host or a device
# included. Bytes, rows and floating-point operations.
POSSIBLE_PER_S = {
    "link": 5e12,  # NVLink-C2C of a GB200 or GB300: 0.45e12 each way
    "link rows": 5e12,
    "link row reads": 1e12,  # its 32-byte words: 0.014e12
    "host memory": 1e14,  # the second-level caches of two 192-core processors: 0.07e14
    "host rows": 1e13,  # two loads a cycle of 384 cores: 0.3e13
    "host GEMM": 1e16,  # AMX on two 128-core processors, bfloat16: 0.13e16
    "device memory": 1e14,  # the second-level cache of a B200: about 0.2e14
    "peers": 5e13,  # NVLink of a GB300: 0.9e12 each way
    "peer rows": 1e13,  # its 32-byte words: 0.03e13
    "device GEMM": 1e17,  # fp4 of a B300, dense: 0.15e17
}


def possible_ms(work: Work) -> float:
    """A time that no machine can be below, from `POSSIBLE_PER_S`: what is faster did not do the work. 0 where nothing
    is known of the resources.

    Args:
        work: amounts by resource.
    """
    times_s = (amount / POSSIBLE_PER_S[name] for name, amount in work.items() if name in POSSIBLE_PER_S)
    return max(times_s, default=0.0) * 1e3


def is_beaten(median_ms: float, limit: Limit | None) -> bool:
    """Whether a time is so far below its limit that one of the two must be wrong."""
    return limit is not None and limit.ms > CLEARLY_BEATEN * median_ms


class Limits:
    """Limits of one machine.

    Args:
        peaks: as `measure.peaks.measure_peaks` returns them.
        measured_on: what memory, in words.
    """

    def __init__(self, peaks: Peaks, measured_on: str = "") -> None:
        self.peaks, self.measured_on = peaks, measured_on
        self.has_device = any(name.startswith(DEVICE) for name in peaks)

    def of(self, work: Work, load: Load) -> Limit | None:
        """The shortest time of a stage, or of a strategy, whose work is that of its stages added up.

        Without an accelerator the host does the device's work, too.

        Args:
            work: amounts by resource: `link` (bytes copied), `link rows` and `link row reads` (bytes of rows, and rows,
                that a kernel reads through it), `host memory` and `device memory` (bytes), `host rows` (rows that the
                CPU reads), `disk rows` (rows of a file), `host GEMM` and `device GEMM` (FLOPs).
            load: what rates depend on besides.

        Returns:
            None where none of the resources was measured.
        """
        amounts: Counter[str] = Counter()
        for name, amount in work.items():
            amounts[name if self.has_device else name.replace(DEVICE, HOST)] += amount  # type: ignore[assignment]
        return max((limit for each in resources() for limit in each.bounds(amounts, load, self.peaks)), default=None)

    def beside(self, peaks: Peaks) -> Limits:
        """These, and others."""
        return Limits({**self.peaks, **peaks}, self.measured_on)

    def summary(self, dtype: str) -> str:
        """The rates that decide most limits, for a human reader: device, host and link, in this order; and what they
        were measured on."""
        rates = sorted(text for each in resources() for text in each.in_words(self.peaks, dtype))
        return ", ".join(rates) + (f"; on {self.measured_on}" if self.measured_on else "")
