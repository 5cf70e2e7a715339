"""A small model's step, for tests of layers inside it."""

from places import parts_of

from engram_exp.measure.clock import Clock
from engram_exp.run.step_bench import StepBench

SMALL = ("decoder=tiny", "decoder.layers=4", "model.layers=[1,3]", "steps_per_sample=2")
DECODE = (*SMALL, "seq_len=1", "tokens.history=true")
PROMPT = SMALL
CASES = "cases=[fetch,decoder,ready,step]"


def bench_of(config) -> StepBench:
    parts = parts_of(config)
    bench = StepBench(parts, parts.plan.step, Clock(parts.plan.device), seed=0)
    bench.build()
    assert not bench.errors, bench.errors
    return bench


def statuses(rows) -> dict[str, str]:
    return {row["case"]: row["status"] for row in rows}
