"""Where the nodes of a run meet, and which of them a worker is of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from engram_exp.errors import ConfigError

KEY = "rendezvous"
PORT = 29500  # torchrun's
OF_SLURM, PORTS_OF_SLURM = 20000, 10000  # of jobs: the first port, and how many, below those that the kernel gives
VARIABLE = "ENGRAM_EXP_NODE"  # of a worker


class Node(NamedTuple):
    """One host of a run.

    number: 0: the first, which writes the rows.
    endpoint: HOST:PORT at which the launchers of all nodes meet; empty: there is one node.
    """

    number: int = 0
    endpoint: str = ""

    @classmethod
    def of_worker(cls) -> Node:
        """The node that this worker was told to be of."""
        number, _, endpoint = os.environ.get(VARIABLE, "0 ").partition(" ")
        return cls(int(number), endpoint)

    def ending_file(self, folder: Path) -> Path:
        """Where its launcher, if it is not the first, leaves the status and the text of what ended its ranks, or null,
        in the folder of a job."""
        return folder / f"node.{self.number}.json"

    def variables(self) -> dict[str, str]:
        """What tells it to a worker."""
        return {VARIABLE: f"{self.number} {self.endpoint}"}


ONE = Node()


def endpoint_of(asked: str | None) -> tuple[str, int]:
    """The host and the port where nodes meet, before there is a run: as the key says, else the first of Slurm's job and
    a port of its own.

    Raises:
        ConfigError: nobody says.
    """
    job, nodes = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_NODELIST")
    if not asked and nodes and job.isdecimal():
        try:
            listed = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            )
            return listed.stdout.split()[0], OF_SLURM + int(job) % PORTS_OF_SLURM
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise ConfigError(KEY, asked, f"scontrol does not tell Slurm's nodes ({error}); name one: HOST") from error
    host, _, port = (asked or "").partition(":")
    if not host or (port and not port.isdecimal()):
        raise ConfigError(KEY, asked, "must be HOST or HOST:PORT of one of the nodes, or null in a job of Slurm")
    return host, int(port or PORT)


def require_one_task_a_node(nodes: int, asked: str | None) -> None:
    """Refuse a step of Slurm that starts another number of these programs than there are nodes.

    Raises:
        ConfigError: with what would do.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if not asked and tasks is not None and int(tasks) != nodes:
        remedy = f"one task is started on each, and this step has {tasks}: srun --nodes={nodes} --ntasks-per-node=1"
        raise ConfigError("nodes", nodes, remedy)
