"""On the GPU, in one kernel: a program hashes a block of tokens for all columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.steps.hashing.step import Hashing

BLOCK_TOKENS = 128


class TritonHasher(Hashing):
    """Hashes into a kept device buffer."""

    def __init__(self, plan: HashPlan, max_tokens: int, placement: Placement) -> None:
        placement.require_triton("hashing")
        self.plan = plan
        device = placement.device
        self.compressed_ids, self.multipliers, self.moduli, self.offsets, self.first_column = (
            None if array is None else torch.from_numpy(array).to(device)
            for array in (plan.compressed_ids, plan.multipliers, plan.moduli, plan.offsets, plan.first_column)
        )
        self.row_ids = placement.empty(max_tokens, plan.columns, dtype=plan.row_id_dtype)
        self.block_columns = triton.next_power_of_2(int((plan.first_column[1:] - plan.first_column[:-1]).max()))

    def __call__(self, ids: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Row ids [B, L, H] of ids int64 [B, L] after history int64 [B, N - 1]; overwritten by the next call."""
        plan, tokens = self.plan, ids.numel()
        _hash_kernel[(triton.cdiv(tokens, BLOCK_TOKENS),)](
            ids,
            history,
            self.compressed_ids,
            plan.pad,
            self.multipliers,
            self.moduli,
            self.offsets,
            self.first_column,
            self.row_ids,
            tokens,
            ids.shape[1],
            plan.columns,
            RAW=plan.compressed_ids is None,
            END=plan.end,
            ORDERS=len(plan.multipliers),
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_COLUMNS=self.block_columns,
        )
        return self.row_ids[:tokens].view(*ids.shape, plan.columns)


@triton.jit
def _hash_kernel(  # type: ignore[no-untyped-def]
    ids,
    history,
    compressed_ids,
    pad,
    multipliers,
    moduli,
    offsets,
    first_column,
    out,
    tokens,
    seq_len,
    columns,
    RAW: tl.constexpr,
    END: tl.constexpr,
    ORDERS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    inside = token < tokens
    sequence, position = token // seq_len, token % seq_len
    mixed = tl.zeros([BLOCK_TOKENS], dtype=tl.int64)
    newer = tl.full([BLOCK_TOKENS], -1, dtype=tl.int64)  # what was hashed one position further on
    for back in tl.static_range(ORDERS):
        in_sequence = position >= back
        token_id = tl.load(ids + token - back, mask=inside & in_sequence, other=-1)
        before = history + sequence * (ORDERS - 1) + (ORDERS - 1) + position - back
        token_id = tl.where(in_sequence, token_id, tl.load(before, mask=inside & ~in_sequence, other=-1))
        if RAW:
            hashed = tl.where(token_id >= 0, token_id, pad)
        else:
            hashed = tl.load(compressed_ids + token_id, mask=token_id >= 0, other=pad).to(tl.int64)
        if END is not None:
            hashed = tl.where(newer == END, END, hashed)
            if back > 0:  # the token at hand ends nothing
                newer = hashed
        mixed = mixed ^ (hashed * tl.load(multipliers + back))
        first = tl.load(first_column + back)
        column = first + tl.arange(0, BLOCK_COLUMNS)
        wanted = column < tl.load(first_column + back + 1)
        modulus = tl.load(moduli + column, mask=wanted, other=1)
        remainder = mixed[:, None] % modulus[None, :]
        if RAW:  # a product may have wrapped around; `%` takes its sign
            remainder = tl.where(remainder < 0, remainder + modulus[None, :], remainder)
        row_id = remainder + tl.load(offsets + column, mask=wanted, other=0)[None, :]
        place = out + token[:, None] * columns + column[None, :]
        tl.store(place, row_id.to(out.dtype.element_ty), mask=inside[:, None] & wanted[None, :])
