"""What a run's rows tell of rows that come again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.tokens import Batch
from engram_exp.reuse.sample import SAMPLED_USES, sample_reuse
from engram_exp.run.parts import Parts
from engram_exp.run.plan import Distinct, Plan


def reuse_columns(plan: Plan, parts: Parts) -> dict[str, Any]:
    """What the batches of a run, in the order in which they rotate, say of rows that come again: the first half million
    uses, whatever the run. Nothing of a run that asks for no rows."""
    if not plan.looks_up:
        return {}
    left, found = SAMPLED_USES // plan.geometry.columns, []
    for batch in parts.batches:
        sequences = -(-left // plan.config.seq_len)
        row_ids = parts.hash.plan.row_ids(*(tensor[:sequences] for tensor in batch)).flatten(0, 1)[:left]
        found.append(row_ids.flatten().numpy())
        left -= len(row_ids)
        if not left:
            break
    sample = sample_reuse(np.concatenate(found), plan.geometry.row_bytes)
    return {"lru_hit_rate": sample.hit_rate, "reuse_distance_rows": sample.distance_rows}


def distinct_among(plan: HashPlan, batches: Sequence[Batch], rows: int) -> Distinct:
    """How many of the row ids that batches ask for are distinct.

    Args:
        plan: of the hash.
        batches: of one shape.
        rows: of the table.
    """
    asked = torch.zeros(rows, dtype=torch.bool)
    of_batch = batches[0].ids.numel() * plan.columns
    in_first, by_order = 0.0, dict[int, float]()
    for batch in batches:
        asked[plan.row_ids(*batch).flatten().long()] = True
        in_first = in_first or int(asked.count_nonzero()) / of_batch
        by_order = by_order or {
            order: int(asked[rows_of].count_nonzero()) * plan.columns / (of_batch * columns)
            for order, columns, rows_of in plan.orders
        }
    in_all = int(asked.count_nonzero()) / (of_batch * len(batches))
    return Distinct(in_first, in_all, len(batches), by_order)
