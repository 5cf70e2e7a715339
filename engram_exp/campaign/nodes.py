"""Several nodes of one run: the first has the campaign, hands each job to the others, and hears what becomes of it.

The same command is started on each of them. Whoever can listen at the place where they meet is the first; the others
connect to it (`campaign.attend`).
"""

from __future__ import annotations

import errno
import platform
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from omegaconf import DictConfig

from engram_exp.campaign.attend import attend
from engram_exp.campaign.line import Line
from engram_exp.campaign.preflight import EXIT_REFUSED
from engram_exp.campaign.process import Ending, measure_in_worker
from engram_exp.campaign.turn import Turn
from engram_exp.errors import ConfigError
from engram_exp.machine.environment import code_digest
from engram_exp.machine.rendezvous import KEY, Node, endpoint_of
from engram_exp.run.job import FILE, Job
from engram_exp.run.terminal import Terminal
from engram_exp.vocabulary import CRASH

GREETING_S = 10.0  # until whoever has come says who it is
GRACE_S = 3.0  # for the ranks of other nodes to end by themselves behind those of the first ...
KILL_S = 60.0  # ... and, when told to, for their launchers to have ended
NOTHING_S = 10.0  # for the others to come, and to be told that there is nothing to do
ELSEWHERE = errno.EADDRNOTAVAIL, errno.EADDRINUSE  # of another machine; or here, where the first node listens already


class OtherNode(Line):
    """A node as the first one sees it.

    Args:
        connection: to it.
        number, host: of it.
    """

    def __init__(self, connection: socket.socket, number: int = 0, host: str = "") -> None:
        super().__init__(connection)
        self.number, self.host, self.has_gone, self.is_busy = number, host, False, False

    def hear(self, patience_s: float | None = None) -> Ending | None:
        """What ended the job there; None: it is ready for it, or got through."""
        try:
            told = self.receive(patience_s)
        except (OSError, ValueError) as error:
            if not isinstance(error, TimeoutError):
                self.has_gone, self.is_busy = True, False
            return Ending(CRASH, f"node {self.number} ({self.host}) was lost: {error}")
        self.is_busy = "ended" not in told
        return Ending(*told["ended"]) if told.get("ended") else None

    def finish(self) -> None:
        """Let its ranks end by themselves, or be ended."""
        if self.is_busy:
            self.hear(GRACE_S)
        if self.is_busy:
            self.send(stop=True)
            self.hear(KILL_S)
        if self.is_busy:
            self.has_gone = True
            self.connection.close()


class OtherNodes:
    """The nodes but the first, as many of them as come in time.

    Args:
        listener: where they connect to; None: there are none.
        host: under which they know this one.
        number: of them.
    """

    def __init__(self, listener: socket.socket | None, host: str, number: int) -> None:
        self.listener, self.host, self.number = listener, host, number
        self.nodes: list[OtherNode] = []

    def part(self) -> None:
        """Let all of them end; those that come now, too, where there was nothing to do."""
        self.gather(NOTHING_S)
        for node in self.nodes:
            node.connection.close()

    def measure(self, jobs: Sequence[Job], turn: Turn) -> Generator[Ending, None, None]:
        """Run a job, of one alone, on as many nodes as it asks for; yields what the run is to be called if it left no
        results."""
        (job,) = jobs
        others = self.nodes[: job.config.nodes - 1]
        gone = [f"node {node.number} ({node.host}) was lost" for node in others if node.has_gone]
        if gone or len(others) < job.config.nodes - 1:
            remedy = "; ".join(gone) or f"{1 + len(others)} came; start the same command on each"
            error = ConfigError("nodes", job.config.nodes, remedy)
            yield Ending(error.status, str(error))
            return
        endpoint = f"{self.host}:{_free_port()}"
        text = (Path(job.folder) / FILE).read_text(encoding="utf-8")
        try:
            for node in others:
                node.is_busy = True
                node.send(folder=job.folder, job=text, node=[node.number, endpoint])
            for node in others:
                if lost := node.hear():  # it may have to wait for its turn there
                    yield lost
                    return
            yield from measure_in_worker(jobs, turn, Node(0, endpoint), others)
        finally:
            for node in others:
                node.finish()

    def gather(self, patience_s: float) -> None:
        """Wait for them, once."""
        listener, self.listener = self.listener, None
        until = time.monotonic() + patience_s
        with listener or nullcontext():
            while listener and len(self.nodes) < self.number and (left_s := until - time.monotonic()) > 0:
                here, port = 1 + len(self.nodes), listener.getsockname()[1]
                who = f"{here} of {1 + self.number} nodes are here"
                Terminal().say(f"waiting: {who}; start the same command on the others ({self.host}:{port})")
                listener.settimeout(left_s)
                with suppress(TimeoutError):
                    self._welcome(listener.accept()[0])

    def _welcome(self, connection: socket.socket) -> None:
        node = OtherNode(connection, len(self.nodes) + 1)
        try:
            hello = node.receive(GREETING_S)
            node.host = hello["host"]
            if hello["code"] != code_digest():
                raise ValueError(f"{node.host} has other code of engram_exp than {platform.node()}")
        except (OSError, ValueError, KeyError) as error:
            Terminal().say(f"a node was turned away: {error}")
            node.send(refused=str(error))
            connection.close()
            return
        node.send(node=node.number)
        Terminal().say(f"node {node.number} is {node.host}")
        self.nodes.append(node)


def meet(configs: Sequence[DictConfig]) -> OtherNodes | None:
    """The other nodes of these runs, if this is the first one; None: this was another, and they are done.

    Raises:
        SystemExit: the nodes cannot meet, which it says.
    """
    first = configs[0]
    others = max(config.nodes for config in configs) - 1
    if not others:
        return OtherNodes(None, "", 0)
    try:
        host, port = endpoint_of(first.rendezvous)
        if listener := _listen(first.rendezvous, host, port):
            return OtherNodes(listener, host, others)
        attend(first.rendezvous, host, port, first.rank_timeout_s)
    except ConfigError as error:
        print(f"refused: {error}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    return None


def _listen(asked: str | None, host: str, port: int) -> socket.socket | None:
    """Listen for the other nodes; None where another process is the first one."""
    try:
        with socket.create_server((host, port)):  # an address of this machine; the others may come to any of its own
            pass
        return socket.create_server(("", port))
    except OSError as error:
        if error.errno in ELSEWHERE:
            return None
        raise ConfigError(KEY, asked, f"nobody can listen at {host}:{port} ({error})") from error


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])
