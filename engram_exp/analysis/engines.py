"""What serving engines can be told to do of what is measured here, release by release.

Read in the released packages. What one release has says nothing about the next: another release is another entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engram_exp.vocabulary import BESIDE, INLINE, OF_A_STEP, OWN, PREVIOUS_STEP, SAME, THIS_STEP

if TYPE_CHECKING:
    import pandas as pd

DECODE, PREFILL = USES = ("decode", "prefill")


@dataclass(frozen=True)
class Setting:
    """One way in which a release can be run.

    Args:
        strategy: that it stands for, and between several GPUs the exchange: `sharded exchange=peer`.
        flags: what one types for it, or sets in the environment.
        differs: from what is measured here under that strategy, and the conditions under which the release does it.
        uses: decode, prefill or both.
        own: columns and their values that tell rows of its own way from all others; none where nothing here does as it
            does.
        in_step: what else rows of a model's step must have for that: where and when rows are fetched.
        batches: of several GPUs, the `rank_batches` that it stands for; empty: of one GPU.
    """

    strategy: str
    flags: str
    differs: str
    uses: tuple[str, ...] = USES
    batches: str = ""
    own: Mapping[str, str] = field(default_factory=dict)
    in_step: Mapping[str, str] = field(default_factory=dict)

    def has(self, rows: pd.DataFrame) -> pd.Series[bool]:
        """Which rows are of its own way."""
        is_own, as_in_step = ((rows[[*told]] == [*told.values()]).all(axis=1) for told in (self.own, self.in_step))
        return is_own & (as_in_step | ~rows["case"].isin(OF_A_STEP)) & bool(self.own)


@dataclass(frozen=True)
class Release:
    """One version of an engine.

    Args:
        settings: the ways in which it can be run.
        sorts: when it sorts row ids before it reads rows through the link.
    """

    settings: tuple[Setting, ...]
    sorts: str


@dataclass(frozen=True)
class Gpus:
    """The GPUs that share a run's work: how many, and where there are several, what their ranks ask for, and on how
    many hosts they are."""

    number: int
    batches: str
    nodes: int = 1


ONE_GPU = Gpus(1, "")
# What both engines call the number of GPUs that ask for the same tokens, and of those that each ask for their own.
PARALLEL = {SAME: "--tensor-parallel-size", OWN: "--data-parallel-size"}
VLLM_SORTS = "from 36,864 on, on the GB200 family alone"
SGLANG_SORTS = "always on CUDA GPUs without ATS, never on those with it"
RELEASES = {
    ("vLLM", "0.33.0"): Release(
        settings=(
            Setting(
                "uva",
                "--engram-config '{\"cpu_offload\": true}'",
                f"its default; sorts row ids {VLLM_SORTS}; reads with half of the multiprocessors on a stream beside "
                "the decoder; values and scales lie apart (here dtype.layout=split); use_thp stays false, since it "
                "excludes shared memory; components=vllm_0_33 measures its way",
                own={"components": "vllm_0_33", "lookup": "vllm_0_33"},
                in_step={"prefetch": BESIDE, "lead": THIS_STEP},
            ),
            Setting(
                "device",
                "--engram-config '{\"cpu_offload\": false}'",
                "spreads the heads over tensor-parallel GPUs; one GPU was measured here",
            ),
            Setting(
                "sharded exchange=all_gather",
                "--engram-config '{\"cpu_offload\": false}'",
                "spreads the heads over the tensor-parallel GPUs, and splits the columns of the projection over them "
                "(here projection=column_parallel)",
                batches=SAME,
            ),
            Setting(
                "host_per_rank exchange=all_gather",
                "--engram-config '{\"cpu_offload\": true}'",
                f"its default; spreads the heads over the tensor-parallel GPUs, each of which reads its own through "
                f"the link; sorts row ids {VLLM_SORTS}; splits the columns of the projection over the GPUs "
                "(here projection=column_parallel)",
                batches=SAME,
            ),
            Setting(
                "sharded exchange=peer",
                '--engram-config \'{"cpu_offload": false, "embedding_across_dp": true}\'',
                "spreads the heads over the data-parallel GPUs; rows are read from their owner through symmetric "
                "memory where tensor-parallel-size is 1",
                batches=OWN,
            ),
            Setting(
                "host_shared",
                "--engram-config '{\"cpu_offload\": true}'",
                "its default (dp_shared_memory is automatic, and excludes use_thp) where the GPUs are of one host and "
                f"/dev/shm holds the tables; sorts row ids {VLLM_SORTS}",
                batches=OWN,
            ),
            Setting(
                "uva",
                '--engram-config \'{"cpu_offload": true, "dp_shared_memory": false}\'',
                f"each data-parallel GPU has a table of its own in host memory; sorts row ids {VLLM_SORTS}",
                batches=OWN,
            ),
            Setting(
                "replicated",
                "--engram-config '{\"cpu_offload\": false}'",
                "each data-parallel GPU has all tables, unless embedding_across_dp is true",
                batches=OWN,
            ),
        ),
        sorts=VLLM_SORTS,
    ),
    ("SGLang", "0.5.23"): Release(
        settings=(
            Setting(
                "uva",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1",
                f"DeepSeek-V4.1 alone; sorts row ids {SGLANG_SORTS}; one program a row, inline; values and scales lie "
                "apart (here dtype.layout=split); components=sglang_0_5_23, in a step with prefetch.where=inline, "
                "measures its way",
                own={"components": "sglang_0_5_23", "lookup": "sglang_0_5_23"},
                in_step={"prefetch": INLINE},
            ),
            Setting(
                "kv_on_gpu",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1 SGLANG_DSV41_ENGRAM_HOST_TABLE_LAYOUT=shared "
                "SGLANG_OPT_DSV41_ENGRAM_HOST_STAGING=1",
                "DeepSeek-V4.1 alone, and prompts alone (decoding reads through the link nevertheless); needs the "
                "shared layout, a GPU without ATS, and extend batches whose tokens are all on the host; 16 threads "
                "gather into fresh pinned memory, and the copies run beside the forward pass before; "
                "components=sglang_staged, in a step with prefetch.lead=previous_step, measures its way",
                uses=(PREFILL,),
                own={"components": "sglang_staged", "lookup": "staged"},
                in_step={"prefetch": BESIDE, "lead": PREVIOUS_STEP},
            ),
            Setting(
                "device",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=0",
                "its default, DeepSeek-V4.1 alone; spreads the rows over tensor-parallel GPUs and adds up what they "
                "read (SGLANG_OPT_DSV41_ENGRAM_PEER_SHARDS=1: each reads from their owner); one GPU was measured here",
            ),
            Setting(
                "sharded exchange=all_reduce",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=0",
                "its default, DeepSeek-V4.1 alone; spreads the rows over the tensor-parallel GPUs (here "
                "table.split=rows) and adds up widened ones",
                batches=SAME,
            ),
            Setting(
                "sharded exchange=peer",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=0 SGLANG_OPT_DSV41_ENGRAM_PEER_SHARDS=1",
                "DeepSeek-V4.1 alone; spreads the rows over the tensor-parallel GPUs (here table.split=rows)",
                batches=SAME,
            ),
            Setting(
                "host_shared",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1 SGLANG_DSV41_ENGRAM_HOST_TABLE_LAYOUT=shared",
                f"DeepSeek-V4.1 alone; sorts row ids {SGLANG_SORTS}; one program a row, inline",
                batches=SAME,
            ),
            Setting(
                "host_per_rank exchange=all_reduce",
                "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1 SGLANG_DSV41_ENGRAM_HOST_TABLE_LAYOUT=per_rank",
                f"DeepSeek-V4.1 alone; spreads the rows over the tensor-parallel GPUs (here table.split=rows), sorts "
                f"row ids {SGLANG_SORTS}, and adds up widened rows",
                batches=SAME,
            ),
        ),
        sorts=SGLANG_SORTS,
    ),
}


def engines_of(rows: pd.DataFrame) -> pd.Series[str]:
    """The release whose own way each row is of, as `vLLM 0.33.0`; empty: none's."""
    found = rows["strategy"].str[:0]
    for (engine, version), release in RELEASES.items():
        for setting in release.settings:
            found = found.mask(setting.has(rows), f"{engine} {version}")
    return found


def named_by_engine(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, in which an engine's own way is a strategy of its own, named as its bundle."""
    return rows.assign(strategy=rows["strategy"].mask(engines_of(rows) != "", rows["components"]))


def settings_for(use: str, gpus: Gpus = ONE_GPU) -> dict[str, dict[str, Setting]]:
    """What each release can do in one use: release as `vLLM 0.33.0`, then strategy.

    Args:
        use: decode or prefill.
        gpus: that share the work; where there are several, the flags say so.
    """
    return {
        f"{engine} {version}": {
            one.strategy: replace(one, flags=_with_gpus(one.flags, gpus)) if gpus.batches else one
            for one in release.settings
            if use in one.uses and one.batches == gpus.batches
        }
        for (engine, version), release in RELEASES.items()
    }


def sorting() -> str:
    """When each release sorts row ids, in words."""
    return "; ".join(f"{engine} {version} {release.sorts}" for (engine, version), release in RELEASES.items())


def _with_gpus(flags: str, gpus: Gpus) -> str:
    """Flags, and how many GPUs there are, behind the environment's variables."""
    number = f"{PARALLEL[gpus.batches]} {gpus.number}"
    return f"{number} {flags}" if flags.startswith("-") else f"{flags} {number}"
