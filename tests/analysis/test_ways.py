"""What one types for a way, whose it is, and which ways the runs tell apart."""

from functools import cache
from pathlib import Path

import pytest
from common import composed
from made_up import advice, steps

from engram_exp.results.schema import WAY, of_role
from engram_exp.run.job import Job

SUBJECT = (
    "model=deepseek_v41_flash", "dtype=fp8", "hardware=cuda", "decoder=dense_8b", "seq_len=1", "batch_size=64",
    "campaign=made",
)  # fmt: skip


def measured(us, *typed):
    """Rows of steps of 64 sequences, as runs tell what was typed for them."""
    job = Job.create(*composed(*SUBJECT, *typed), Path("nowhere"), overrides=typed)
    told = job.columns()
    ways = {name: told.get(name) for name in (*of_role(WAY), "by_auto", "options")}
    return steps(
        told["strategy"], {(64, 1): us}, **{name: "" if value is None else value for name, value in ways.items()}
    )


@cache
def others():
    """Another way of two strategies."""
    return [measured(90, f"strategy={name}", "components=original", "upload=fresh") for name in ("uva", "kv_on_gpu")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "also"),
    [
        ("components=tuned_uva lookup=triton_link", "lookup=triton_link"),  # which it brings
        ("components=tuned_uva dtype.layout=split lookup.order=sorted table=pinned schedule=serial capture=graph", ""),
        ("components=tuned_uva strategy=device", ""),
        ("components=vllm_0_33 lookup=triton_link lookup.warps=8 lookup.stages=2 prefetch.priority=high", ""),
        ("components=sglang_0_5_23 prefetch.where=inline", ""),
        ("strategy=uva components=original", ""),
        ("strategy=kv_on_gpu components=tuned schedule.chunk_tokens=16", ""),
        ("strategy=kv_on_gpu components=tuned schedule=pipelined", "schedule=pipelined"),  # chunks by its rule
    ],
)
def test_what_is_told_of_a_bundle_is_what_it_does_not_bring_and_gives_the_same_again(typed, also):
    (step,) = advice(measured(50, *typed.split()), *others()).steps
    best = step.strategies[0]
    assert sorted(best.overrides) == sorted(set(typed.split()) - {also})
    once, again = (composed(*SUBJECT, *each)[0] for each in (typed.split(), best.overrides))
    assert again == once
