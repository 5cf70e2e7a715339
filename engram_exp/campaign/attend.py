"""A node that is not the first: it does what that one says, until it ends.

Where a file system is not shared, it writes the jobs that it is sent, and keeps the logs of its own ranks.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from engram_exp.campaign.line import Line
from engram_exp.campaign.process import Ending, measure_in_worker
from engram_exp.campaign.turn import turn
from engram_exp.errors import ConfigError
from engram_exp.machine.environment import code_digest
from engram_exp.machine.files import write_text
from engram_exp.machine.rendezvous import KEY, Node
from engram_exp.run.job import FILE, Job
from engram_exp.run.terminal import Terminal
from engram_exp.vocabulary import CRASH

RETRY_S = 0.5  # between attempts to connect to a node that does not listen yet


class FirstNode(Line):
    """The first node as another one sees it."""

    @property
    def is_here(self) -> bool:
        """Whether both are of one machine, as to try something: then the first has the turn on it."""
        return bool(self.connection.getpeername()[0] == self.connection.getsockname()[0])

    def hear(self) -> Ending | None:
        """That it has ended the job, or itself."""
        with suppress(OSError, ValueError):
            self.receive()
        return Ending(CRASH, "the first node ended it")


def attend(asked: str | None, host: str, port: int, patience_s: float) -> None:
    """Run the ranks of this node of each job that the first one hands out, until that ends.

    Args:
        asked: the value of `rendezvous` ...
        host, port: ... and what it comes to.
        patience_s: that the first node may let this one wait until it listens.

    Raises:
        ConfigError: there is no first node, or it turns this one away.
    """
    first = FirstNode(_connect(asked, host, port, patience_s))
    first.send(host=platform.node(), code=code_digest())
    try:
        welcome = first.receive(patience_s)
    except (OSError, ValueError) as error:
        remedy = f"whoever listens at {host}:{port} is no run of this program that waits for nodes; use another port"
        raise ConfigError(KEY, asked, remedy) from error
    if "node" not in welcome:
        raise ConfigError(KEY, asked, f"{host}:{port} turned this node away: {welcome.get('refused')}")
    Terminal().say(f"node {welcome['node']} of the runs of {host}:{port}, which shows and writes them")
    with first.connection, suppress(OSError, ValueError):
        while True:
            told = first.receive()
            if "job" in told:  # else it ends what has ended by itself meanwhile
                first.send(ended=_run(first, Node(*told["node"]), Path(told["folder"]), told["job"]))


def _run(first: FirstNode, node: Node, folder: Path, text: str) -> Sequence[str] | None:
    """The status and the text of what ended a job here; None: its ranks got through."""
    left, file = node.ending_file(folder), folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left.unlink(missing_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
        with nullcontext() if first.is_here else turn() as held:
            first.send(ready=True)
            (ending,) = measure_in_worker([Job.load(folder)], held, node, [first])
        found = json.loads(left.read_text(encoding="utf-8")) if left.exists() else ending
        left.unlink(missing_ok=True)
    except Exception as error:
        return CRASH, f"node {node.number} ({platform.node()}): {error!r}"
    return found


def _connect(asked: str | None, host: str, port: int, patience_s: float) -> socket.socket:
    until = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(RETRY_S, until - time.monotonic()))
        except OSError as error:
            if time.monotonic() > until:
                remedy = f"no node listens there ({error}); it must be an address of one on which the command runs, too"
                raise ConfigError(KEY, asked, remedy) from error
            time.sleep(RETRY_S)
