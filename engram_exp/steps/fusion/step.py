"""What every fusion is."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import torch

from engram_exp.layer.excerpt import excerpt
from engram_exp.layer.fusion import gate_of
from engram_exp.layer.geometry import EngramGeometry
from engram_exp.stage import Load, Reference, Stage, Tensors, Tolerance
from engram_exp.vocabulary import HIDDEN, HOST

FLOAT32_BYTES = 4


class Fusion(Stage):
    """Raw keys, value and the model's hidden state -> the hidden state behind the layer, in a kept buffer of its own.

    Built as `Fusion(fusion_weights, max_tokens, placement, lead)`; called with keys [T, M, C], value [T, C] and hidden
    [T, M, C] without gaps, it returns [T, M, C] in the compute dtype. If the model has a convolution, it is also called
    with what came before each of the B sequences, the oldest first: values [B, R, C], and scales float32 [B, R, M]
    (`FusionWeights` says of what). Of each sequence the first `lead` tokens are only read, and left out of what it
    returns.
    """

    built_from = ("fusion_weights", "max_tokens", "placement", "lead")
    convolves: ClassVar[bool] = False  # it is for models with a convolution

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Keys, value, hidden state, weights and history read, hidden state written."""
        weights = count_weights(load.geometry) * load.geometry.value_bytes
        return super().bytes_moved(load) + load.bytes_of(HIDDEN) + history_bytes(load) + weights

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Streams, of which a chunk's keys and value come from a cache."""
        return {load.memory: cls.bytes_moved(load) - (load.bytes_of(load.stage.needs) if load.staged else 0)}

    @classmethod
    def flops(cls, load: Load) -> int:
        """Multiplications and additions on vectors."""
        geometry = load.geometry
        of_value = 3 * 2 + 2 + 2 * (geometry.conv_kernel or 0)  # two norms and their product, the gated sum, the taps
        return of_value * load.tokens * geometry.hc_mult * geometry.hidden_size

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """The model's hidden state and history; the weights, the host's copy of them, and one in float32."""
        geometry, kept = load.geometry, Counter({load.stage.side: load.bytes_of(HIDDEN)})
        kept[load.stage.side] += load.sequences * geometry.conv_reach * _history_token_bytes(geometry)
        kept[load.stage.side] += count_weights(geometry) * geometry.value_bytes
        kept[HOST] += count_weights(geometry) * (geometry.value_bytes + FLOAT32_BYTES)
        return dict(kept)

    @classmethod
    def brings(cls, load: Load) -> tuple[str, ...]:
        """The hidden state and, for a convolution, what was before each sequence."""
        return ("hidden",) if load.geometry.conv_kernel is None else ("hidden", "history_value", "history_scale")

    @classmethod
    def reads(cls, load: Load, positions: torch.Tensor) -> torch.Tensor:
        """The K taps of each token, the oldest first; one before its sequence stands for the token itself."""
        places, is_before = _taps(load, positions)
        return torch.where(is_before, positions[:, None], places).flatten()

    @classmethod
    def excerpt_of_brought(cls, load: Load, brought: Tensors, positions: torch.Tensor) -> Tensors:
        """The hidden state of all taps; for a convolution also value [n, K, C] and scale [n, K, M] of taps before their
        sequence, and which these are [n, K]."""
        hidden, *history = brought
        found = excerpt(HIDDEN, (hidden,), cls.reads(load, positions), load.tokens)
        if not history:
            return found
        places, is_before = _taps(load, positions)
        length = load.tokens // load.sequences
        sequence = (positions // length)[:, None]
        back = (places - sequence * length).clamp_max(-1)  # from the end of the history: -R to -1
        picked = (tensor[sequence.to(tensor.device), back.to(tensor.device)].cpu() for tensor in history)
        return (*found, *picked, is_before)

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, Tolerance]:
        """The hidden state [n, M, C] in float32, and how far off each of its vectors may be.

        A gate's slope has no bound where its product d is near 0, and keys within the tolerance put d off by about as
        much: what the gate may change by then is allowed, too.
        """
        keys, value, hidden, *history = (tensor.float() for tensor in inputs)
        weights, tolerance = reference.reference_fusion, reference.tolerance
        products = weights.products(keys, hidden)
        gated = gate_of(products)[..., None] * value[:, None]
        at = slice(weights.kernel - 1, None, weights.kernel)  # the last tap: the token itself
        fused = hidden[at] + gated[at]
        if history:
            values, scales, is_before = history
            here, there = weights.normed(gated).unflatten(0, is_before.shape), weights.earlier(values, scales)
            taps = torch.where(is_before[..., None, None].bool(), there, here)
            fused = fused + weights.convolved(taps.unbind(1))
        swing = gate_of(products[at] + tolerance) - gate_of(products[at] - tolerance)
        slack = swing * value[at].norm(dim=-1, keepdim=True) / fused.norm(dim=-1)
        return (fused,), tolerance + slack


def count_weights(geometry: EngramGeometry) -> int:
    """Numbers in the weights, but for the key norms, which count with the projection's."""
    conv = 0 if geometry.conv_kernel is None else 1 + geometry.conv_kernel
    return (1 + conv) * geometry.hc_mult * geometry.hidden_size


def history_bytes(load: Load) -> int:
    """Bytes that the convolution reads of what was before the tokens of a call: of each such token its value and, in
    float32, M scales."""
    geometry = load.geometry
    if geometry.conv_kernel is None or geometry.conv_dilation is None:
        return 0
    length = min(load.tokens // load.sequences, geometry.conv_reach)  # behind these, no token reads so far back
    backs = range(0, geometry.conv_reach + 1, geometry.conv_dilation)
    read = {position - back for position in range(length) for back in backs if position < back}
    return load.sequences * len(read) * _history_token_bytes(geometry)


def _history_token_bytes(geometry: EngramGeometry) -> int:
    """Bytes that a sequence hands on of each of its last tokens."""
    return geometry.hidden_size * geometry.value_bytes + geometry.hc_mult * FLOAT32_BYTES


def _taps(load: Load, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [n, K] of the taps of some tokens among T, and whether each is before the token's sequence."""
    geometry = load.geometry
    backs = torch.arange(geometry.conv_reach, -1, -(geometry.conv_dilation or 1))
    places = positions[:, None] - backs
    return places, places < (positions - positions % (load.tokens // load.sequences))[:, None]
