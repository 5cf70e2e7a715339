"""Some tokens of a value's tensors, however these are laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engram_exp.errors import MismatchError
from engram_exp.vocabulary import BY_SEQUENCE

if TYPE_CHECKING:
    import torch

Tensors = tuple["torch.Tensor", ...]


def excerpt(value: str, tensors: Tensors, positions: torch.Tensor, tokens: int) -> Tensors:
    """Copies on the CPU of the tensors of a value at some of T tokens; what has no tokens, such as a history, whole."""
    picked = (
        tensor if (flat := by_token(value, tensor, tokens)) is None else flat[positions.to(tensor.device)]
        for tensor in tensors
    )
    return tuple(tensor.detach().cpu().clone() for tensor in picked)


def by_token(value: str, tensor: torch.Tensor, tokens: int) -> torch.Tensor | None:
    """A view [T, ...] of a value's tensor; None of one without tokens.

    Raises:
        MismatchError: the tensor is laid out so that only a copy has that shape; what is written there would be lost.
    """
    try:
        flat = tensor.view(-1, *tensor.shape[2:]) if value in BY_SEQUENCE else tensor
    except RuntimeError as error:
        strides = tuple(tensor.stride())
        raise MismatchError(f"{value}: strides {strides} keep tokens apart; return a contiguous tensor") from error
    return flat if len(flat) == tokens else None
