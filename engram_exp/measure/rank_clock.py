"""One clock over the ranks of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.machine.ranks import Ranks
from engram_exp.measure.clock import Clock, Sample


class RankClock(Clock):
    """Times a call that all ranks make together: they begin at the same instant, and a sample is the slowest rank's
    time, the same on all of them. So all that follows from times (warming up, iterations, budgets, which samples are
    looked at) is the same on all ranks, too.

    Args:
        device, shared: as every clock has them.
        ranks: of the run.
    """

    def __init__(self, device: torch.device, ranks: Ranks, *, shared: bool = False) -> None:
        super().__init__(device, shared=shared)
        self.ranks = ranks

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
            sample = super().time(call, uses_device=uses_device)
        except Exception as raised:
            error = raised
        longest = self.ranks.agree(error, tuple(value or 0.0 for value in sample))
        wall_ms, *others = longest
        return Sample(wall_ms, *(None if own is None else ms for own, ms in zip(sample[1:], others, strict=True)))
