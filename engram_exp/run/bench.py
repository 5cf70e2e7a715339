"""What flows through the stages of a run: real data from stage to stage, verified, and the calls that cases time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from engram_exp.layer.tokens import Batch
from engram_exp.machine.memory import peak_bytes
from engram_exp.machine.placement import Placement, poison
from engram_exp.measure.clock import Clock
from engram_exp.run import verify
from engram_exp.run.parts import Builder
from engram_exp.run.whole import WholeRun, build_whole_run
from engram_exp.stage import Stage, Tensors
from engram_exp.strategy.plan import PlannedStage, made_up_inputs
from engram_exp.strategy.schedule import cut
from engram_exp.vocabulary import FULL, UPLOAD_AT_END, UPLOADS

PATTERN_TOKENS = 256  # made-up input repeats this many random tokens


class Flow:
    """The stages of a run and their inputs.

    A stage reads what the stage before it left behind, or made-up input where that one is not built.

    Args:
        builder: of the run.
        names: stages to build.
        planned: all stages of the strategy.
        clock: of the run's device.
        whole: also build what runs all of the strategy.
    """

    def __init__(
        self, builder: Builder, names: Sequence[str], planned: Sequence[PlannedStage], clock: Clock, *, whole: bool
    ) -> None:
        self.builder = builder
        self.names = names
        self.has_whole = whole
        self.clock = clock
        self.own = [stage.name for stage in planned]
        self.made_up = made_up_inputs(names, planned)
        self.stages: dict[str, Stage] = {}
        self.inputs: dict[str, Tensors] = {}
        self.outputs: dict[str, Tensors] = {}
        self.whole_run: WholeRun | None = None
        self.whole_peaks: dict[str, int] = {}  # memory of the whole strategy, before more was built

    def stage(self, name: str) -> Stage:
        """A built stage."""
        return self.stages[name]

    def build_and_verify(self) -> None:
        """Build every stage, run it on the first batch and compare it with the reference; then the whole strategy on
        another batch, so that no stage can pass by what it left behind.

        The whole is built as soon as row ids are known to be right: stages that only single cases need, such as those
        of whole batches beside a pipeline's, are not in its memory then.

        Raises:
            MismatchError: a stage computes something else.
        """
        pipelined = self.builder.pipelined
        needed_by_whole = [name for name in self.names if name == "hashing" or (name in self.own and not pipelined)]
        for name in needed_by_whole:
            self._build_and_verify_stage(name)
        if self.has_whole:
            self._build_whole()
        for name in self.names:
            if name not in self.stages:
                self._build_and_verify_stage(name)
        if self.whole_run:
            for tensor in self.whole_run(self.builder.batches[0]):
                poison(tensor)
            self._verify_whole()

    def _build_and_verify_stage(self, name: str) -> None:
        self.stages[name] = self.builder.stage(name)
        self.inputs[name] = self._input_of(name)
        self.outputs[name] = self._run(self.stages[name], self.inputs[name])
        self._verify_stage(name)

    def _build_whole(self) -> None:
        builder = self.builder
        self.whole_run = build_whole_run(builder, self.stages)
        if self.own[0] in UPLOADS and self.own[0] in self.stages:
            for batch in builder.batches:  # an upload works out how to copy from each when it first sees it
                self._run(self.stages[self.own[0]], batch)
        self.whole_run(builder.batches[0])  # no more than one: rows of the others must not be in a cache yet
        self.clock.synchronize()
        self.whole_peaks = peak_bytes(builder.device)

    def _verify_whole(self) -> None:
        builder = self.builder
        assert self.whole_run is not None
        first = builder.batches[0]
        shifted = Batch((first.ids + 1) % builder.compression.vocab_size, first.history)
        (batch,) = builder.pinned([shifted])
        keys_and_value = self.whole_run(batch)
        self.clock.synchronize()
        tokens = self._compared_tokens()
        stored = builder.table.contents(verify.reference_row_ids(builder.hash_plan, batch)[tokens])
        want = verify.reference_kv(builder.weights, builder.row_format.widen(stored).flatten(1))
        verify.require_kv(FULL, keys_and_value, want, tokens, builder.config.dtype.tolerance)

    def _compared_tokens(self) -> torch.Tensor:
        config, chunk_tokens = self.builder.config, self.builder.chunk_tokens or self.builder.tokens
        first_chunk = cut(config.batch_size, config.seq_len, chunk_tokens)[0]
        return verify.compared_tokens(self.builder.tokens, config.seq_len, first_chunk.tokens)

    def calls(self, case: str) -> list[Callable[[], object]]:
        """What the iterations of a case call in turn. Token ids and row ids rotate, since they decide which table rows
        are touched; the time of the later stages does not depend on the values they read."""
        batches = self.builder.batches
        if case == FULL:
            assert self.whole_run is not None
            return [partial(self.whole_run, batch) for batch in batches]
        run = self.stages[case].run
        if case == "hashing":
            return [partial(run, self._ids_for_hashing(batch)) for batch in batches]
        if case == "lookup":
            return [partial(run, tuple(tensor.clone() for tensor in self._up_to(case, batch))) for batch in batches]
        return [partial(run, self.inputs[case])]

    def save_tensors(self, path: Path) -> None:
        """Write what the built stages make of the first batch, as safetensors.

        Names: token_ids, history, row_ids, stored_rows (fp8), embeddings, keys, value.
        """
        batch = self.builder.batches[0]
        tensors: dict[str, torch.Tensor] = {"token_ids": batch.ids, "history": batch.history}
        names: dict[str, tuple[str, ...]] = {
            "hashing": ("row_ids",),
            "lookup": ("stored_rows",) if "widening" in self.own else ("embeddings",),
            "widening": ("embeddings",),
            "projection": ("keys", "value"),
        }
        flowing: Tensors = batch
        for name in self.own:
            if name not in self.stages:
                break
            flowing = self._run(self.stages[name], flowing)
            tensors.update(zip(names.get(name, ()), flowing, strict=False))
        if self.whole_run:
            tensors.update(zip(("keys", "value"), self.whole_run(batch), strict=True))
            self.clock.synchronize()
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
        pattern = self._pattern(name)
        values = placement.empty(tokens, pattern.shape[1], dtype=pattern.dtype)
        for chunk in values.split(len(pattern)):
            chunk.copy_(pattern[: len(chunk)])
        if name != UPLOAD_AT_END:
            return (values,)
        vectors = values.view(tokens, geometry.hc_mult + 1, geometry.hidden_size)
        keys, value = vectors[:, :-1], vectors[:, -1]
        return (keys, value) if builder.kv_buffers == 1 else (keys.contiguous(), value.contiguous())

    def _pattern(self, name: str) -> torch.Tensor:
        builder, geometry = self.builder, self.builder.geometry
        if name == UPLOAD_AT_END:
            return torch.randn(PATTERN_TOKENS, geometry.kv_width).to(builder.dtype)
        row_ids = torch.randint(geometry.rows, (PATTERN_TOKENS, geometry.columns))
        stored = builder.row_format.contents(row_ids, builder.config.seed)
        return (builder.row_format.widen(stored) if name == "projection" else stored).flatten(1)

    def _ids_for_hashing(self, batch: Tensors) -> Tensors:
        device = self.builder.placement_of("hashing").device
        return tuple(tensor.to(device) for tensor in batch)

    def _verify_stage(self, name: str) -> None:
        builder, got = self.builder, self.outputs[name]
        tokens = self._compared_tokens()
        if name == "hashing":
            want_ids = verify.reference_row_ids(builder.hash_plan, builder.batches[0])
            verify.require_equal(name, got[0].flatten(0, 1), want_ids)
        elif name == "lookup":
            row_ids = self.inputs[name][0].flatten(0, 1).cpu()[tokens]
            embeddings = got[0][tokens.to(got[0].device)]
            verify.require_equal(name, embeddings, builder.table.contents(row_ids).flatten(1))
        elif name == "widening":
            stored = self.inputs[name][0][tokens.to(got[0].device)].cpu()
            want = builder.row_format.widen(stored.view(len(tokens), -1, builder.row_format.width)).flatten(1)
            verify.require_equal(name, got[0][tokens.to(got[0].device)], want)
        elif name == "projection":
            embeddings = self.inputs[name][0]
            kv = verify.reference_kv(builder.weights, embeddings[tokens.to(embeddings.device)].cpu())
            verify.require_kv(name, got, kv, tokens, builder.config.dtype.tolerance)
        else:
            for tensor, source in zip(got, self.inputs[name], strict=True):
                sample = tokens if len(source) == builder.tokens else torch.arange(len(source))
                verify.require_equal(name, tensor[sample.to(tensor.device)], source[sample])
