"""Made-up rows of a campaign, and the advice that they give."""

import pandas as pd

from engram_exp import advise
from engram_exp.results.schema import COLUMNS


def rows(strategy, times, spread=0.01, **columns):
    """`full` of a strategy: tokens -> ms."""
    base = dict.fromkeys(COLUMNS, "") | {
        "status": "ok", "case": "full", "strategy": strategy, "model": "demo", "dtype": "bfloat16", "tokens": "text",
        "seq_len": 1, "table": "device" if strategy == "device" else "huge", "row_bytes": 128, "true_rows": 10**7,
        "table_scale": 1.0, "rows_per_s": 1.0, "chunk_tokens": None,
        "layers": None,
    }  # fmt: skip
    return pd.DataFrame(
        [
            {**base, "batch_size": tokens, "wall_ms_median": ms, "wall_ms_lo": ms * (1 - spread),
             "wall_ms_hi": ms * (1 + spread), **columns}
            for tokens, ms in times.items()
        ]
    )  # fmt: skip


def three(**columns):
    return pd.concat(
        [
            rows("uva", {1: 0.1, 64: 0.2, 4096: 4.0, 65536: 64.0}, **columns),
            rows("kv_on_gpu", {1: 0.3, 64: 0.4, 4096: 4.01, 65536: 32.0}, **columns),
            rows("device", {1: 0.09, 64: 0.1, 4096: 0.5, 65536: 8.0}, **columns),
        ]
    )


def ask(frame, **options):
    return advise(frame, "demo", **{"decode": 64, "prefill": 65536, "device_memory_gb": 0, **options})
