"""Processes that are the ranks of many small checks: started once, since to import PyTorch takes seconds."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engram_exp.machine.ranks import Ranks

PATIENCE_S = 60.0
SILENT = "no answer"
PRELOADED = [  # by a server that forks the ranks
    "pool", "engram_exp.steps.lookup.gather", "engram_exp.steps.exchange.all_gather",
    "engram_exp.steps.exchange.all_reduce", "engram_exp.steps.exchange.all_to_all", "engram_exp.steps.exchange.peer",
    "engram_exp.steps.tables.ranks",
]  # fmt: skip

Check = Callable[..., Any]  # is given this rank's `Ranks`, and what else it is called with


class Pool:
    """Ranks 0 to `most` - 1, of which the first so many take part in a check.

    Args:
        most: of them.
        pipes: to each.
    """

    def __init__(self, most: int, pipes: list[Any]) -> None:
        self.most, self.pipes = most, pipes
        self.asked = 0

    def __call__(self, size: int, check: Check, *arguments: Any) -> list[Any]:
        """What a check returns on each of so many ranks.

        Raises:
            AssertionError: with the traceback of a rank on which it raised.
        """
        self.asked += 1
        for pipe in self.pipes[:size]:
            pipe.send((self.asked, size, check, arguments))
        until = time.monotonic() + PATIENCE_S
        answers = [self._answer(pipe, until) for pipe in self.pipes[:size]]
        errors = [(error == SILENT, rank, error) for rank, (error, _) in enumerate(answers) if error]
        for _, rank, error in sorted(errors):  # the others wait for one that raised
            raise AssertionError(f"rank {rank} of {size}: {error}")
        return [found for _, found in answers]

    def _answer(self, pipe: Any, until: float) -> tuple[str | None, Any]:
        """What a rank answers to what it was asked last: it may still owe answers that nobody waited for."""
        while pipe.poll(max(0.0, until - time.monotonic())):
            asked, error, found = pipe.recv()
            if asked == self.asked:
                return error, found
        return SILENT, None


@contextmanager
def pool_of(most: int, folder: Path, *preloaded: str) -> Iterator[Pool]:
    """Start so many ranks, which have also imported these modules, and end them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *preloaded])
    pipes, processes = [], []
    for rank in range(most):
        own, other = context.Pipe()
        process = context.Process(target=_serve, args=(rank, most, str(folder / "store"), other), daemon=True)
        process.start()
        pipes.append(own)
        processes.append(process)
    try:
        yield Pool(most, pipes)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(PATIENCE_S)
            process.kill()


def _serve(rank: int, most: int, path: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(path, most)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=most, timeout=timedelta(seconds=PATIENCE_S))
    of_size = {
        size: tuple(dist.new_group(list(range(size)), backend="gloo") for _ in range(2)) for size in range(1, most + 1)
    }
    while (asked := pipe.recv()) is not None:
        number, size, check, arguments = asked
        ranks = Ranks(rank, size, rank, size, PATIENCE_S, *of_size[size], store)
        try:
            pipe.send((number, None, check(ranks, *arguments)))
        except BaseException:
            pipe.send((number, traceback.format_exc(), None))
