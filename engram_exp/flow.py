"""What flows through the stages of a run: real data from stage to stage, verified, and the calls that cases time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from engram_exp import verify
from engram_exp.build import Builder
from engram_exp.measure.clock import Clock
from engram_exp.placement import Placement, poison
from engram_exp.plan import FULL, UPLOAD_AT_END, UPLOADS, PlannedStage, made_up_inputs
from engram_exp.strategy import Stage, Strategy
from engram_exp.tokens import Batch
from engram_exp.verify import Tensors

PATTERN_TOKENS = 256  # made-up input repeats this many random tokens


class Flow:
    """The built stages of a run and their inputs.

    A stage reads what the stage before it left behind, or made-up input where that one is not built.

    Args:
        builder: of the run.
        names: stages to build.
        planned: all stages of the strategy.
        clock: of the run's device.
    """

    def __init__(self, builder: Builder, names: Sequence[str], planned: Sequence[PlannedStage], clock: Clock) -> None:
        self.builder = builder
        self.clock = clock
        self.stages = {stage.name: stage for stage in builder.stages(names)}
        self.own = [stage.name for stage in planned]
        self.made_up = made_up_inputs(names, planned)
        self.inputs: dict[str, Tensors] = {}
        self.outputs: dict[str, Tensors] = {}

    def stage(self, name: str) -> Stage:
        """A built stage."""
        return self.stages[name]

    def verify(self, *, verify_full: bool) -> None:
        """Run every built stage on the first batch and compare it with the reference; then the whole strategy on
        another batch, so that no stage can pass by what it left behind.

        Raises:
            MismatchError: a stage computes something else.
        """
        for name, stage in self.stages.items():
            self.inputs[name] = self._input_of(name)
            self.outputs[name] = self._run(stage, self.inputs[name])
            self._verify_stage(name)
        if verify_full:
            self._verify_full()

    def _verify_full(self) -> None:
        builder = self.builder
        first = builder.batches[0]
        batch = Batch((first.ids + 1) % builder.compression.vocab_size, first.history)
        for tensor in self.outputs[self.own[-1]]:
            poison(tensor)
        keys_and_value = self.strategy(batch)
        self.clock.synchronize()
        tokens = verify.compared_tokens(builder.tokens, builder.config.seq_len)
        embeddings = builder.table.contents(verify.reference_row_ids(builder.hash_plan, batch)[tokens]).flatten(1)
        want = verify.reference_kv(builder.weights, embeddings)
        verify.require_kv(FULL, keys_and_value, want, tokens, builder.config.dtype.tolerance)

    @property
    def strategy(self) -> Strategy:
        """All stages of the strategy in a row."""
        return Strategy([self.stages[name] for name in self.own])

    def calls(self, case: str) -> list[Callable[[], object]]:
        """What the iterations of a case call in turn. Token ids and row ids rotate, since they decide which table rows
        are touched; the time of the later stages does not depend on the values they read."""
        batches = self.builder.batches
        if case == FULL:
            return [partial(self.strategy, batch) for batch in batches]
        run = self.stages[case].run
        if case == "hashing":
            return [partial(run, self._ids_for_hashing(batch)) for batch in batches]
        if case == "lookup":
            return [partial(run, tuple(tensor.clone() for tensor in self._up_to(case, batch))) for batch in batches]
        return [partial(run, self.inputs[case])]

    def unique_row_fraction(self) -> float | None:
        """Distinct rows among those that the first batch asks for; None where nothing is looked up."""
        if "lookup" not in self.stages:
            return None
        (row_ids,) = self._up_to("lookup", self.builder.batches[0])
        return len(torch.unique(row_ids)) / row_ids.numel()

    def save_tensors(self, path: Path) -> None:
        """Write what the built stages make of the first batch, as safetensors.

        Names: token_ids, history, row_ids, embeddings, keys, value.
        """
        batch = self.builder.batches[0]
        tensors: dict[str, torch.Tensor] = {"token_ids": batch.ids, "history": batch.history}
        names: dict[str, tuple[str, ...]] = {
            "hashing": ("row_ids",), "lookup": ("embeddings",), "projection": ("keys", "value")
        }  # fmt: skip
        flowing: Tensors = batch
        for name in self.own:
            if name not in self.stages:
                break
            flowing = self._run(self.stages[name], flowing)
            tensors.update(zip(names.get(name, ()), flowing, strict=False))
        temporary = path.with_suffix(".tmp")
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)

    def _run(self, stage: Stage, tensors: Tensors) -> Tensors:
        result = stage.run(tensors)
        self.clock.synchronize()  # the next call may overwrite what this one still reads
        return result

    def _up_to(self, name: str, batch: Tensors) -> Tensors:
        """What a stage of the strategy reads for a batch."""
        for earlier in self.own[: self.own.index(name)]:
            batch = self._run(self.stages[earlier], batch)
        return batch

    def _input_of(self, name: str) -> Tensors:
        if name in self.made_up:
            return self._made_up_input(name)
        position = self.own.index(name)
        return self.outputs[self.own[position - 1]] if position else self.builder.batches[0]

    def _made_up_input(self, name: str) -> Tensors:
        builder = self.builder
        geometry, tokens = builder.geometry, builder.tokens
        if name == "up_ids":
            return builder.batches[0]
        if name == "hashing":
            return self._ids_for_hashing(builder.batches[0])
        placement = (
            Placement(torch.device("cpu"), builder.pins)
            if name in UPLOADS
            else Placement(builder.placement_of(name).device)
        )
        if name == "up_rows":
            dtype = torch.int32 if geometry.row_id_bytes == 4 else torch.int64
            row_ids = placement.empty(*builder.batches[0].ids.shape, geometry.columns, dtype=dtype)
            return (row_ids.random_(geometry.rows),)
        width = geometry.kv_width if name == UPLOAD_AT_END else geometry.embedding_width
        values = placement.empty(tokens, width, dtype=builder.dtype)
        pattern = torch.randn(min(tokens, PATTERN_TOKENS), width).to(values)
        for chunk in values.split(len(pattern)):
            chunk.copy_(pattern[: len(chunk)])
        if name != UPLOAD_AT_END:
            return (values,)
        vectors = values.view(tokens, geometry.hc_mult + 1, geometry.hidden_size)
        return vectors[:, :-1], vectors[:, -1]

    def _ids_for_hashing(self, batch: Tensors) -> Tensors:
        device = self.builder.placement_of("hashing").device
        return tuple(tensor.to(device) for tensor in batch)

    def _verify_stage(self, name: str) -> None:
        builder, got = self.builder, self.outputs[name]
        tokens = verify.compared_tokens(builder.tokens, builder.config.seq_len)
        if name == "hashing":
            want_ids = verify.reference_row_ids(builder.hash_plan, builder.batches[0])
            verify.require_equal(name, got[0].flatten(0, 1), want_ids)
        elif name == "lookup":
            row_ids = self.inputs[name][0].flatten(0, 1).cpu()[tokens]
            embeddings = got[0][tokens.to(got[0].device)]
            verify.require_equal(name, embeddings, builder.table.contents(row_ids).flatten(1))
        elif name == "projection":
            embeddings = self.inputs[name][0]
            want = verify.reference_kv(builder.weights, embeddings[tokens.to(embeddings.device)].cpu())
            verify.require_kv(name, got, want, tokens, builder.config.dtype.tolerance)
        else:
            for tensor, source in zip(got, self.inputs[name], strict=True):
                sample = tokens if len(source) == builder.tokens else torch.arange(len(source))
                verify.require_equal(name, tensor[sample.to(tensor.device)], source[sample])
