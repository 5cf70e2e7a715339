"""What every hasher is."""

from __future__ import annotations

import torch

from engram_exp.stage import Load, Reference, Stage, Tensors


class Hashing(Stage):
    """Token ids and their history -> row ids, equal to the last bit whatever the backend.

    Built as `Hasher(plan, max_tokens, placement)`; called with ids int64 [B, L] and history int64 [B, N - 1], it
    returns `plan.row_id_dtype` [B, L, H].
    """

    built_from = ("plan", "max_tokens", "placement")
    rotates = True
    compares_all = True

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Ids read and row ids written, of which a chunk's stay in a cache."""
        return {load.memory: load.bytes_of(load.stage.needs) if load.staged else cls.bytes_moved(load)}

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Random row ids [T, H], each of its column."""
        plan = reference.hash_plan
        drawn = torch.randint(2**62, (tokens, plan.columns)) % torch.from_numpy(plan.moduli)
        return (drawn + torch.from_numpy(plan.offsets)).to(plan.row_id_dtype)

    @classmethod
    def arranged(cls, flat: torch.Tensor, load: Load) -> Tensors:
        """Row ids [B, L, H]."""
        return (flat.view(load.sequences, -1, flat.shape[-1]),)

    @classmethod
    def excerpt(cls, load: Load, inputs: Tensors, positions: torch.Tensor) -> Tensors:
        """The ids [n, 1] at these positions, each with the ids before it as history [n, N - 1]."""
        ids, history = (tensor.cpu() for tensor in inputs)
        stream = torch.cat([history, ids], dim=1)
        sequence, position = positions // ids.shape[1], positions % ids.shape[1]
        windows = stream[sequence[:, None], position[:, None] + torch.arange(history.shape[1] + 1)]
        return windows[:, -1:], windows[:, :-1]

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, float]:
        """Row ids [T, H] by the plan's own reference."""
        ids, history = inputs
        return (reference.hash_plan.row_ids(ids, history).flatten(0, 1),), 0.0
