"""What a run's rows tell of rows that come again."""

from __future__ import annotations

from typing import Any

import numpy as np

from engram_exp.reuse.sample import SAMPLED_USES, sample_reuse
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Plan


def reuse_columns(plan: Plan, parts: Parts) -> dict[str, Any]:
    """What the batches of a run, in the order in which they rotate, say of rows that come again: the first half million
    uses, whatever the run. Nothing of a run that asks for no rows."""
    if not plan.looks_up:
        return {}
    left, found = SAMPLED_USES // parts.geometry.columns, []
    for batch in parts.batches:
        sequences = -(-left // plan.config.seq_len)
        row_ids = parts.hash_plan.row_ids(*(tensor[:sequences] for tensor in batch)).flatten(0, 1)[:left]
        found.append(row_ids.flatten().numpy())
        left -= len(row_ids)
        if not left:
            break
    sample = sample_reuse(np.concatenate(found), parts.geometry.row_bytes)
    return {"lru_hit_rate": sample.hit_rate, "reuse_distance_rows": sample.distance_rows}
