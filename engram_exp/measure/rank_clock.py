"""One clock over the ranks of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from threading import Thread

import torch

from engram_exp.errors import LostRank
from engram_exp.machine.ranks import Ranks
from engram_exp.measure.clock import Clock, Sample

LOOKS = 10  # of a watch while a rank may keep others waiting: rare, so that nothing that is timed notices them


class Watch:
    """Ends a rank that does not come back from what it is entered for: a device that waits in a graph for what another
    rank does not send waits for ever, and its process with it.

    Args:
        ranks: of the run.
        end: this rank; is told who is missing, in another thread.
    """

    def __init__(self, ranks: Ranks, end: Callable[[LostRank], None]) -> None:
        self.ranks, self.end, self.since = ranks, end, math.inf
        Thread(target=self._look, daemon=True).start()

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.since = math.inf

    def _look(self) -> None:
        while time.monotonic() - self.since < self.ranks.patience_s:
            time.sleep(self.ranks.patience_s / LOOKS)
        self.end(LostRank(self.ranks.missing()))


class RankClock(Clock):
    """Times a call that all ranks make together: they begin at the same instant, and a sample is the slowest rank's
    time, the same on all of them. So all that follows from times (warming up, iterations, budgets, which samples are
    looked at) is the same on all ranks, too.

    Args:
        device, shared: as every clock has them.
        ranks: of the run.
        watch: over calls; None: what they wait for has a time limit of its own.
    """

    def __init__(self, device: torch.device, ranks: Ranks, *, shared: bool = False, watch: Watch | None = None) -> None:
        super().__init__(device, shared=shared)
        self.ranks, self.watch = ranks, watch or nullcontext()

    def slowest(self, seconds: float) -> float:
        """The longest of the ranks' times."""
        return self.ranks.agree(numbers=(seconds,))[0]

    def time(self, call: Callable[[], object], *, uses_device: bool) -> Sample:
        """Time one call of all ranks.

        Raises:
            OtherRankError: it failed on one of them, if not on this.
            LostRank: one of them does not come back from it.
        """
        self.synchronize()
        self.ranks.start_together()
        error, sample = None, Sample(0.0, None, None)
        try:
            with self.watch:
                sample = super().time(call, uses_device=uses_device)
        except Exception as raised:
            error = raised
        longest = self.ranks.agree(error, tuple(value or 0.0 for value in sample))
        wall_ms, *others = longest
        return Sample(wall_ms, *(None if own is None else ms for own, ms in zip(sample[1:], others, strict=True)))
