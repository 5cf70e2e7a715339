"""What one types for a way, whose it is, and which ways the runs tell apart."""

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from common import composed
from made_up import advice, ask, rows, steps, text

from engram_exp.analysis.advice_in_words import certainty, lines_of
from engram_exp.config import decoders
from engram_exp.results.schema import WAY, of_role
from engram_exp.run.job import Job
from engram_exp.run.job_rows import job_columns

SUBJECT = (
    "model=deepseek_v41_flash", "dtype=fp8", "hardware=cuda", "decoder=dense_8b", "seq_len=1", "batch_size=64",
    "campaign=made",
)  # fmt: skip
OURS = {"components": "tuned_uva", "lookup": "triton_link"}
VLLM = {"components": "vllm_0_33", "lookup": "vllm_0_33", "layout": "split", "table": "pinned"}
LINE = "  vLLM 0.33.0 as uva, its own way, {} us at 64 tokens (the choice{}): --engram-config"


def measured(us, *typed):
    """Rows of steps of 64 sequences, as runs tell what was typed for them."""
    job = Job.create(*composed(*SUBJECT, *typed), Path("nowhere"), overrides=typed)
    told = job_columns(job)
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


SAVES = ", not its way, saves 40.0 us, 0.40 % of the step"


@pytest.mark.parametrize(
    ("ours_us", "vllm_us", "spread_us", "runs", "choose", "sure", "then"),
    [
        (50, 90, 1, 4, "components=tuned_uva", "ahead of vLLM 0.33.0's way", SAVES),
        (50, 90, 70, 4, "components=tuned_uva", "ahead of vLLM 0.33.0's way", SAVES),
        (50, 90, 45, 3, "components=tuned_uva", "undecided against vLLM 0.33.0's way", f"{SAVES}; undecided at 64"),
        (90, 50, 1, 4, "components=vllm_0_33", "vLLM 0.33.0's way; ahead of components=tuned_uva", ""),
    ],
)
def test_of_one_strategy_the_runs_say_whose_way_is_ahead(ours_us, vllm_us, spread_us, runs, choose, sure, then):
    ours, vllm = (
        steps("uva", {(64, 1): us}, runs, spread_us, **told) for us, told in ((ours_us, OURS), (vllm_us, VLLM))
    )
    told = text(ours, vllm)
    (line,) = [line for line in told.split("\n") if line.startswith("  64 ")]
    cells = re.split(" {2,}", line.strip())
    assert (cells[1], cells[-1]) == (choose, sure)
    longer = f"{vllm_us:.1f}" if vllm_us > spread_us else f"nothing clear: {vllm_us:.1f}"
    assert LINE.format(longer, then) in told


def test_a_layer_alone_in_an_engines_way_says_so():
    vllm = rows("uva", {64: 0.3, 65536: 30.0}, **VLLM)
    told = lines_of(ask(vllm, files=decoders))
    assert "  as components=vllm_0_33, vLLM 0.33.0's way" in told
    choice = ask(pd.concat([vllm, rows("uva", {64: 0.4, 65536: 40.0}, **OURS)]), files=decoders).choices[0]
    assert certainty(choice) == "vLLM 0.33.0's way; ahead of components=tuned_uva by intervals of fewer than 4 runs"


def test_many_other_ways_are_counted():
    told = text(
        *(steps("uva", {(64, 1): 50 + programs}, lookup="triton_link", programs=programs) for programs in range(5))
    )
    assert "  ahead of 4 other ways\n" in told
