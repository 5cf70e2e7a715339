"""Every step is compared with a plain reference before any time is taken.

Row ids and embeddings must be equal to the last bit, keys and value within the dtype's tolerance of float32. All row
ids are compared, and of the rest the tokens at the edges of a batch and some hundreds between them.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear, rms_norm

from engram_exp.errors import MismatchError
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.layer.tokens import Batch
from engram_exp.layer.weights import ProjectionWeights
from engram_exp.machine.placement import Placement
from engram_exp.stage import Tensors
from engram_exp.steps.hashing.numpy import NumpyHasher

EDGE = 32  # tokens at each end of a batch and of its first sequence ...
SPREAD = 256  # ... and so many between them


def compared_tokens(tokens: int, *lengths: int) -> torch.Tensor:
    """Positions in a flattened batch of T tokens at which all but row ids are compared: int64, ascending.

    Among them are those on both sides of the first boundary between parts of each of the given lengths.
    """
    edges = torch.arange(EDGE)
    spread = torch.arange(0, tokens, max(1, tokens // SPREAD))
    boundaries = [length + offset for length in lengths for offset in (edges, -1 - edges)]
    chosen = torch.cat([edges, tokens - 1 - edges, spread, *boundaries])
    return torch.unique(chosen[(chosen >= 0) & (chosen < tokens)])


def reference_row_ids(plan: HashPlan, batch: Batch) -> torch.Tensor:
    """Row ids [T, H] of a whole batch by the NumPy hasher."""
    return NumpyHasher(plan, batch.ids.numel(), Placement(torch.device("cpu")))(*batch).flatten(0, 1)


def reference_kv(weights: ProjectionWeights, embeddings: torch.Tensor) -> Tensors:
    """Keys [n, M, C] and value [n, C] in float32, of embeddings [n, H * D] on the CPU."""
    weights = weights.to(torch.float32)
    kv = linear(embeddings.float(), weights.weight, weights.bias).view(-1, weights.hc_mult + 1, weights.hidden_size)
    keys = rms_norm(kv[:, :-1], (weights.hidden_size,), eps=weights.norm_eps) * weights.norm
    return keys, kv[:, -1]


def require_equal(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """Compare to the last bit.

    Raises:
        MismatchError: saying how many values differ.
    """
    got = got.cpu()
    if got.shape != want.shape or got.dtype != want.dtype:
        raise MismatchError(f"{what}: {got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}")
    different = int((got != want).sum())
    if different:
        raise MismatchError(f"{what}: {different} of {want.numel()} compared values differ from the reference")


def require_close(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Compare vectors (the last dimension) by |got - want| / |want|.

    Raises:
        MismatchError: a vector is farther off than the tolerance, or not finite.
    """
    got = got.cpu().float()
    if got.shape != want.shape:
        raise MismatchError(f"{what}: {list(got.shape)} instead of {list(want.shape)}")
    error = (got - want).norm(dim=-1) / want.norm(dim=-1)
    wrong = ~(error <= tolerance)  # a NaN is wrong, too
    if wrong.any():
        worst = float(error[wrong].nan_to_num(nan=torch.inf).max())
        raise MismatchError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} compared vectors differ from the float32 reference, "
            f"by up to {worst:.2g} (tolerance {tolerance:g})"
        )


def require_kv(what: str, got: Tensors, want: Tensors, tokens: torch.Tensor, tolerance: float) -> None:
    """Compare keys and value at the given tokens with a reference of these tokens alone.

    Raises:
        MismatchError: as `require_close`.
    """
    for name, tensor, reference in zip(("keys", "value"), got, want, strict=True):
        require_close(f"{what}, {name}", tensor[tokens.to(tensor.device)], reference, tolerance)
