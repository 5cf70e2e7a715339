"""Made-up rows of campaigns, and the advice that they give."""

import numpy as np
import pandas as pd

from engram_exp import advise
from engram_exp.analysis.advice_in_words import lines_of_all
from engram_exp.analysis.answers import advise_all
from engram_exp.config import decoders
from engram_exp.results.schema import COLUMNS, SCHEMA_VERSION, TEXT_COLUMNS

EMPTY = {name: "" if name in TEXT_COLUMNS else np.nan for name in COLUMNS}  # as the loader has it


def rows(strategy, times, spread=0.01, **columns):
    """`full` of a strategy: tokens -> ms."""
    return pd.DataFrame(_records(strategy, times, spread, **columns))


def _records(strategy, times, spread=0.01, **columns):
    base = EMPTY | {
        "status": "ok", "case": "full", "strategy": strategy, "model": "demo", "dtype": "bfloat16", "tokens": "text",
        "seq_len": 1, "table": "device" if strategy == "device" else "huge", "row_bytes": 128, "true_rows": 10**7,
        "table_scale": 1.0, "rows_per_s": 1.0, "chunk_tokens": None,
        "layers": None,
    }  # fmt: skip
    return [
        {**base, "batch_size": tokens, "wall_ms_median": ms, "wall_ms_lo": ms * (1 - spread),
         "wall_ms_hi": ms * (1 + spread), **columns}
        for tokens, ms in times.items()
    ]  # fmt: skip


def three(**columns):
    return pd.concat(
        [
            rows("uva", {1: 0.1, 64: 0.2, 4096: 4.0, 65536: 64.0}, **columns),
            rows("kv_on_gpu", {1: 0.3, 64: 0.4, 4096: 4.01, 65536: 32.0}, **columns),
            rows("device", {1: 0.09, 64: 0.1, 4096: 0.5, 65536: 8.0}, **columns),
        ]
    )


def steps(strategy, exposed_us, runs=4, spread_us=1.0, ready_ms=10.0, share=0.9, **columns):
    """Runs of a model's step with a strategy: (sequences, tokens of each) -> us that it takes longer. Their decoder
    alone takes its limit over the share."""
    found = []
    for (sequences, seq_len), us in exposed_us.items():
        for number in range(runs):
            asked = {
                "run_id": f"{strategy} {sequences} {seq_len} {number} {sorted(columns.items())}", "seq_len": seq_len,
                "decoder": "dense_8b", "engram_layers": "1 14", "ids": "device" if seq_len == 1 else "host",
                "device": "cuda", "layout": "packed", "dtype": "fp8", "row_bytes": 264, "true_rows": 384_006_168,
                "model": "deepseek_v41_flash", "peak_device_bytes": 0, "prefetch": "beside",
                "lead": "this_step", **columns,
            }  # fmt: skip
            exposed_ms = us / 1e3
            exposed = {"exposed_ms_median": exposed_ms, "exposed_ms_lo": exposed_ms - spread_us / 1e3,
                       "exposed_ms_hi": exposed_ms + spread_us / 1e3}  # fmt: skip
            times = {"decoder": ready_ms - 1, "ready": ready_ms, "step": ready_ms + exposed_ms}
            for case, ms in times.items():
                more = {"limit_ms": ms * share} if case == "decoder" and share else {"limit_ms": None}
                told = exposed if case == "step" else dict.fromkeys(exposed)
                found += _records(strategy, {sequences: ms}, case=case, **{**asked, **more, **told})
    return pd.DataFrame(found)


def ask(frame, **options):
    return advise(frame, "demo", **{"decode": 64, "prefill": 65536, "device_memory_gb": 0, **options})


def answers(*frames, **more):
    asked = {"decode": 64, "prefill": 65536, "device_memory_gb": 0, "files": decoders, **more}
    return advise_all(pd.concat(frames, ignore_index=True), **asked)


def advice(*frames, **more):
    (one,) = answers(*frames, **more)
    return one.advice


def text(*frames, **more):
    return "\n".join(lines_of_all(answers(*frames, **more)))


LONGER = {"decoder": 1.0, "ready": 1.1, "step": 1.25}  # times of the decoder alone


def step_campaign(longer=LONGER, processes=1, rounds=9, noise=0.1, **columns):
    """Rows and samples of a model's steps: decode steps of 1, 2 and 4 sequences, prompts of 4, 8 and 16 tokens; in each
    round all cases take longer by one factor.

    longer: the cases, and how much longer they take than the decoder; or a list of that for each process.
    """
    base = dict.fromkeys(COLUMNS, "") | {"status": "ok", "decoder": "dense_8b", "strategy": "uva", "table_scale": 1.0}
    base |= {"schema_version": SCHEMA_VERSION, "preempted": 0, "iterations": rounds, **columns}
    random, rows, samples = np.random.default_rng(0), [], []
    shapes = [(1, 1), (2, 1), (4, 1), (1, 4), (1, 8), (1, 16)]
    for process, (batch_size, seq_len) in ((process, shape) for process in range(processes) for shape in shapes):
        run_id = f"{base['decoder']}_{base['strategy']}_{batch_size}_{seq_len}_{process}_{base['prefetch']}"
        ids = "device" if seq_len == 1 else "host"
        run = {**base, "run_id": run_id, "batch_size": batch_size, "seq_len": seq_len, "ids": ids}
        factors = (1 + 0.1 * batch_size + seq_len) * random.uniform(1 - noise, 1 + noise, rounds)
        for case, factor in (longer[process] if isinstance(longer, list) else longer).items():
            ms = factor * factors
            rows.append({**run, "case": case, "wall_ms_median": np.median(ms), "wall_ms_mean": ms.mean()})
            samples += [{"run_id": run_id, "case": case, "iteration": n, "wall_ms": each} for n, each in enumerate(ms)]
    return pd.DataFrame(rows), pd.DataFrame(samples)
