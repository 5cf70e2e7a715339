"""Compiled, over blocks of tokens on as many threads as pay, without intermediate arrays.

A division costs ten times a multiplication and cannot be vectorised, so remainders are taken by the reciprocal of the
modulus in double precision. With |x| <= 2^63 the three roundings in `float(x) * (1 / p)` put the quotient off by less
than 3 * 2^10 / p + 1, which leaves |x - q p| below 2^12 + p; of so small a number the same step leaves a remainder in
[-p, p], which one correction in either direction mends. The result is exact for every modulus from 2 to 2^50.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.step import Hashing
from engram_exp.steps.loops import Loop, Threads, threads_for
from engram_exp.vocabulary import AUTO

# From so many row ids on, auto takes all threads. It rests on two cores alone, used by others, too, and called once in
# 2 ms: one thread took 0.5 of the time of two for 1,536 row ids, 0.6 for 6,144, and as long as two for 24,576.
TOGETHER_FROM_ROWS = 16384
BLOCK_TOKENS = 64  # so many mixed hashes stay in the first-level cache while every column takes its remainders


class NumbaHasher(Hashing):
    """Hashes into a kept buffer.

    Args:
        plan: of the layer.
        max_tokens: T, at most.
        placement: of the output.
        threads: of the CPU; auto: the calling one for the row ids of a small step, else all of the run.
    """

    def __init__(self, plan: HashPlan, max_tokens: int, placement: Placement, threads: Threads = AUTO) -> None:
        placement.require("cpu", "hashing")
        self.plan, self.threads = plan, threads
        self.reciprocals = 1 / plan.moduli
        self.row_ids = placement.empty(max_tokens, plan.columns, dtype=plan.row_id_dtype)
        self._fit(torch.Size([max_tokens, 1]))

    def __call__(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]; overwritten by the next call."""
        plan = self.plan
        if ids.shape != self.shape:
            self._fit(ids.shape)
        _hash(
            threads_for(self.threads, self.out.size, TOGETHER_FROM_ROWS),
            ids.numpy(),
            history.numpy(),
            plan.compressed_ids,
            plan.pad,
            plan.end,
            plan.multipliers,
            plan.moduli,
            self.reciprocals,
            plan.offsets,
            plan.first_column,
            self.out,
        )
        return self.result

    def _fit(self, shape: torch.Size) -> None:
        """Views for batches [B, L] of one shape. It mostly comes again, and to make them takes a good part of the time
        of a small step."""
        rows = self.row_ids[: shape.numel()]
        self.shape, self.out, self.result = shape, rows.numpy(), rows.view(*shape, self.plan.columns)


@Loop
def _hash(ids, history, compressed_ids, pad, end, multipliers, moduli, reciprocals, offsets, first_column, out):  # type: ignore[no-untyped-def]
    # What asks for an argument that is None is not compiled.
    seq_len, history_len = ids.shape[1], history.shape[1]
    for block in prange((ids.size + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
        first = block * BLOCK_TOKENS
        tokens = min(BLOCK_TOKENS, ids.size - first)
        mixed = np.zeros(BLOCK_TOKENS, dtype=np.int64)
        if end is not None:
            newer = np.full(BLOCK_TOKENS, -1)  # what was hashed one position further on; the token at hand ends nothing
        for back in range(len(multipliers)):
            sequence, position = first // seq_len, first % seq_len
            for token in range(tokens):
                if back <= position:
                    token_id = ids[sequence, position - back]
                else:
                    token_id = history[sequence, history_len + position - back]
                if compressed_ids is not None:
                    hashed = compressed_ids[token_id] if token_id >= 0 else pad
                else:
                    hashed = token_id if token_id >= 0 else pad
                if end is not None:
                    hashed = end if newer[token] == end else hashed
                    newer[token] = hashed if back else -1
                mixed[token] ^= hashed * multipliers[back]
                position += 1
                if position == seq_len:
                    sequence, position = sequence + 1, 0
            for column in range(first_column[back], first_column[back + 1]):
                modulus, reciprocal, offset = moduli[column], reciprocals[column], offsets[column]
                for token in range(tokens):
                    remainder = mixed[token] - np.int64(np.float64(mixed[token]) * reciprocal) * modulus
                    remainder -= np.int64(np.float64(remainder) * reciprocal) * modulus
                    remainder += modulus if remainder < 0 else 0
                    remainder -= modulus if remainder >= modulus else 0
                    out[first + token, column] = remainder + offset
