"""The processes of one run, each with a device of its own, and what they agree on.

A rank does what every run does; what one of them finds out that the others must know as well goes through `agree` or
`gather`, so that all take the same turn. They talk over Gloo on the CPU, beside the exchanges that are measured.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from engram_exp.errors import LostRank, OtherRankError, ranks_in_words, status_of, text_of
from engram_exp.vocabulary import CRASH

Found = TypeVar("Found")
LAUNCHED_WITH = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"  # variables of torch's launcher
FIRST = 0  # the rank that shows and writes what all have found
GRACE_S = 5.0  # for the launcher to end this process where another died, and to hear of those who wait, too
HOSTS_GRACE = 4  # times as long, over several hosts
MOST_NUMBERS = 3  # that ranks agree on at a time
START_S = 2e-4  # from agreeing on a start until it; more than a rank may learn of it later than another


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Args:
        rank, size: which one of how many it is.
        local_rank, local_size: on this host; the ranks of a host follow each other.
        patience_s: that a rank may keep others waiting.
        group: what exchanges go through; None: all ranks.
        control: what all else goes through; None of one rank alone.
        store: where those say so who wait in vain.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    patience_s: float = 0.0
    group: Any = None
    control: Any = None
    store: Any = None

    @classmethod
    def join(cls, device: torch.device, patience_s: float, longest_s: float) -> Ranks:
        """Join those that torch's launcher has started, as its variables say.

        Args:
            device: NCCL connects GPUs, Gloo CPUs.
            patience_s: that a rank may keep others waiting ...
            longest_s: ... but for what one does for all, such as measuring limits.
        """
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in LAUNCHED_WITH)
        store, _, _ = next(rendezvous("env://"))
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        patience = timedelta(seconds=patience_s)
        own = None if device.type == "cpu" else device
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, device_id=own)
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=longest_s))
        return cls(rank, size, local_rank, local_size, patience_s, dist.group.WORLD, control, store)

    def leave(self) -> None:
        """Part in order: behind this, nobody waits for anybody."""
        if self.control is not None:
            gc.collect()  # of graphs that hold what they send through: a group waits for them when it ends
            self.agree()
            dist.destroy_process_group()

    @property
    def first_of_host(self) -> int:
        """The first rank of this host."""
        return self.rank - self.local_rank

    @property
    def hosts(self) -> int:
        """How many there are, with as many ranks each."""
        return self.size // self.local_size

    @property
    def grace_s(self) -> float:
        """How long a rank waits for its end where another died: of another host, its own launcher hears of it last."""
        return GRACE_S if self.hosts == 1 else HOSTS_GRACE * GRACE_S

    @property
    def share_one_host(self) -> bool:
        """Whether all ranks can reach each other's memory."""
        return self.hosts == 1

    @cached_property
    def compute_group(self) -> Any:
        """What goes through here is computed: the sums of a decoder's layers, and columns of a projection, one behind
        the other on one stream; an exchange may be under way beside it. All ranks ask for it first at the same turn;
        None of one rank alone."""
        if self.size == 1:
            return None
        self.agree()  # nothing but the launcher ends a rank that waits in there for one that is not coming
        return dist.new_group(timeout=timedelta(seconds=self.patience_s))

    def agree(self, error: Exception | None = None, numbers: tuple[float, ...] = ()) -> list[float]:
        """Wait until every rank is here, and learn how it fared.

        Args:
            error: what went wrong on this one.
            numbers: of this one, three at most.

        Returns:
            The largest of all ranks' numbers, each.

        Raises:
            Exception: of one rank alone, its error.
            OtherRankError: on all ranks alike, what went wrong on some.
            LostRank: another does not come, or an exchange broke, behind which there is none.
        """
        if self.size == 1:
            if error:
                raise error
            return list(numbers)
        told = torch.zeros(1 + MOST_NUMBERS, dtype=torch.float64)  # of one size, whichever turn the others take
        told[: 1 + len(numbers)] = torch.tensor([float(error is not None), *numbers])
        self._wait(lambda: dist.all_reduce(told, dist.ReduceOp.MAX, group=self.control, async_op=True), error)
        if told[0]:
            own = None if error is None else (status_of(error), text_of(error, {}), is_broken(error))
            found = self.gather(own)
            causes = [None if other is None or other[2] else other[:2] for other in found]
            if broken := next((other[1] for other in found if other and other[2]), ""):
                cause = OtherRankError(causes) if any(causes) else RuntimeError(f"an exchange broke: {broken}")
                raise LostRank(str(cause), status_of(cause)) from error
            raise OtherRankError(causes) from error
        return told[1 : 1 + len(numbers)].tolist()

    def known(self, error: Exception | None) -> Exception | None:
        """What all ranks know of an error of this one, or of another: one that came from agreeing, they know already.

        Raises:
            LostRank: as `agree`.
        """
        if not isinstance(error, OtherRankError):
            try:
                self.agree(error)
            except Exception as agreed:
                return agreed
        return error

    def agreed(self, call: Callable[..., None] | None) -> Callable[..., None] | None:
        """The same call, behind which all ranks raise what one of them raised."""
        if call is None or self.size == 1:
            return call

        def on_all(*arguments: Any) -> None:
            error = None
            try:
                call(*arguments)
            except Exception as raised:
                error = raised
            self.agree(error)

        return on_all

    def start_together(self) -> None:
        """Return when all ranks do: on one host at the same instant by its clock, else behind a barrier."""
        if self.size == 1:
            return
        (latest_s,) = self.agree(numbers=(time.perf_counter(),))
        while self.share_one_host and time.perf_counter() < latest_s + START_S:
            pass

    def draw_alike(self) -> None:
        """Let PyTorch draw the same numbers on all ranks from here on."""
        if self.size > 1:
            (seed,) = self.agree(numbers=(float(torch.randint(2**31, ())),))
            torch.manual_seed(int(seed))

    def gather(self, found: Found) -> list[Found]:
        """What each rank has found, by rank."""
        if self.size == 1:
            return [found]
        every: list[Any] = [None] * self.size
        with self._connected():
            dist.all_gather_object(every, found, group=self.control)
        return every

    def from_first(self, find: Callable[[], Found]) -> Found:
        """What the first rank finds, however long it takes, on all of them."""
        found = [find() if self.rank == FIRST else None]
        if self.size > 1:
            with self._connected():
                dist.broadcast_object_list(found, src=FIRST, group=self.control)
        return found[0]  # type: ignore[return-value]

    def _wait(self, begin: Callable[[], Any], error: Exception | None) -> None:
        """Wait for the others: little if an exchange with them broke, long if it is they who wait in one for this."""
        patience_s = self.patience_s if error is None else self.grace_s if is_broken(error) else 2 * self.patience_s
        began = time.monotonic()
        try:
            begin().wait(timedelta(seconds=patience_s))
        except RuntimeError as lost:
            if error is not None and not is_broken(error):
                raise LostRank(f"rank {self.rank}: {text_of(error, {})}", status_of(error)) from error
            if time.monotonic() - began < patience_s:
                raise self._ended(lost) from lost
            raise LostRank(self.missing()) from lost

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """While ranks tell each other something."""
        try:
            yield
        except RuntimeError as lost:
            raise self._ended(lost) from lost

    def _ended(self, lost: Exception) -> LostRank:
        """That a connection has ended: the launcher knows whose, and ends this process meanwhile."""
        time.sleep(self.grace_s)
        return LostRank(f"the connection to another rank ended: {lost}", CRASH)

    def missing(self) -> str:
        """Who does not wait in vain as this rank does, in words."""
        self.store.set(f"waits/{self.rank}", "")
        time.sleep(self.grace_s)
        late = [rank for rank in range(self.size) if not self.store.check([f"waits/{rank}"])]
        for_long = f"for {self.patience_s:g} s (rank_timeout_s)"
        if not late:
            return f"all ranks waited for each other {for_long}"
        return f"{ranks_in_words(late)} kept the others waiting {for_long}"


def is_broken(error: Exception) -> bool:
    """Whether an exchange between ranks timed out or lost its other end."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "timed out" in text)
    )


ALONE = Ranks()


def all_gather(out: torch.Tensor, own: torch.Tensor, group: Any) -> None:
    """Fill [size, ...] with the [...] of each rank, under the name that this PyTorch has for it."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out.view(-1), own.view(-1), group=group)
