"""What the stages of a run make of its first batch, in a file."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from engram_exp.machine.ranks import FIRST
from engram_exp.run.built import BuiltCases
from engram_exp.run.parts import Parts
from engram_exp.stage import Tensors
from engram_exp.vocabulary import EMBEDDINGS, HIDDEN, KV, LAYER, PARTS, ROWS, WHOLES

log = logging.getLogger(__name__)

TENSORS = "tensors.safetensors"


def save_tensors(built: BuiltCases, folder: Path) -> None:
    """Write them; of several ranks the first does so."""
    tensors = named_tensors(built)  # which all ranks make together
    if built.ranks.rank != FIRST:
        return
    path = folder / TENSORS
    temporary = path.with_suffix(".tmp")
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk: no reason to measure nothing
        log.warning("%s cannot be written: %s", path, error)
        with suppress(OSError):
            temporary.unlink()


def named_tensors(built: BuiltCases) -> dict[str, torch.Tensor]:
    """What the built stages make of the first batch: token_ids, history, row_ids, stored_rows, or stored_values and
    stored_scales (fp8), embeddings, keys, value, layer; with a fusion among them, also what the layer can be
    computed from."""
    batch = built.parts.batches[0]
    tensors: dict[str, torch.Tensor] = {"token_ids": batch.ids, "history": batch.history}
    names = {
        ROWS: ("stored_rows",),
        PARTS: ("stored_values", "stored_scales"),
        KV: ("keys", "value"),
        HIDDEN: (LAYER,),
    }
    if not any(stage.makes == EMBEDDINGS for stage in built.plan.stages):
        names[ROWS] = (EMBEDDINGS,)
    flowing: Tensors = batch
    for stage in built.plan.stages:
        if stage.name not in built.stages or stage.name in built.errors:
            break
        flowing = built.run_alone(partial(built.stages[stage.name].run, flowing))
        if not stage.is_upload:
            tensors.update(zip(names.get(stage.makes, (stage.makes,)), flowing, strict=True))
    for case, run in built.whole_runs.items():
        if case not in built.errors:
            tensors.update(zip(names[WHOLES[case]], built.run_alone(partial(run, batch)), strict=True))
    if any(stage.makes == HIDDEN for stage in built.plan.built):
        tensors.update(_layer_tensors(built.parts))
    return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}


def _layer_tensors(parts: Parts) -> dict[str, torch.Tensor]:
    """Parameters and what the model brings: all that the hidden state behind the layer follows from, beside its
    embeddings."""
    projection, fusion, state = parts.weights.projection, parts.weights.fusion, parts.model_state
    convolves = parts.plan.geometry.conv_kernel
    found = {
        "weight": projection.weight,
        "bias": projection.bias,
        "key_norm": fusion.key_norm,
        "query_norm": fusion.query_norm,
        "conv_norm": fusion.conv_norm,
        "conv_weight": fusion.conv_weight,
        "hidden": state.hidden,
        "history_value": state.history_value if convolves else None,
        "history_scale": state.history_scale if convolves else None,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}
