"""Whether results are right: compared with plain references, at the edges of a batch and at tokens drawn for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engram_exp.errors import MismatchError
from engram_exp.layer.excerpt import excerpt
from engram_exp.run.kinds import step_of
from engram_exp.run.parts import Parts
from engram_exp.stage import Stage, Task, Tensors, Tolerance
from engram_exp.vocabulary import TENSORS_OF

EDGE = 32  # tokens at each end of a batch and of its parts ...
SPREAD = 256  # ... and so many between them
GLANCE = 2  # tokens beside the first and the last that are looked at behind every sample

Tasks = Sequence[Task]  # of a case: one, or all of a whole
Excerpt = tuple[Tensors, ...]  # of what the first of them reads, and of what the model brings to each of them


def compared_tokens(tokens: int, lengths: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Positions in a flattened batch of T tokens at which values are compared: int64, ascending.

    Args:
        tokens: T.
        lengths: of parts; the tokens on both sides of the first boundary between parts of each length are among them.
        generator: of those between the edges, which are drawn.
    """
    edges = torch.arange(EDGE)
    spread = torch.randint(tokens, (SPREAD,), generator=generator)
    boundaries = [length + offset for length in lengths for offset in (edges, -1 - edges)]
    chosen = torch.cat([edges, tokens - 1 - edges, spread, *boundaries])
    return torch.unique(chosen[(chosen >= 0) & (chosen < tokens)])


class Verifier:
    """Compares what the stages of a run, or all of them together, make of their inputs with plain references.

    Args:
        parts: of the run.
        seed: of the tokens that are compared; nobody who computes knows it.
    """

    def __init__(self, parts: Parts, seed: int) -> None:
        self.parts = parts
        self.generator = torch.Generator().manual_seed(seed)
        plan = parts.plan
        self.lengths = [plan.config.seq_len, *([plan.cuts[0].tokens] if plan.cuts else [])]

    def positions(self) -> torch.Tensor:
        """The tokens of one comparison, drawn anew each time between the edges."""
        return compared_tokens(self.parts.plan.tokens, self.lengths, self.generator)

    def few_positions(self) -> torch.Tensor:
        """The first token, the last, and some between them."""
        tokens = self.parts.plan.tokens
        drawn = torch.randint(tokens, (GLANCE,), generator=self.generator)
        return torch.unique(torch.cat([torch.tensor([0, tokens - 1]), drawn]))

    def require(self, case: str, tasks: Tasks, inputs: Tensors, result: object, positions: torch.Tensor) -> None:
        """Compare the result of one call.

        Args:
            case: what was called.
            tasks: what it comes to.
            inputs: as they were read; the result has been waited for.
            result: what was returned.
            positions: the tokens to compare.

        Raises:
            MismatchError: it is not what the reference makes of these inputs.
        """
        got = self.read(case, tasks, result, positions)  # at once: what is written later comes too late
        want, tolerance = self.wanted(tasks, self.excerpt(tasks, inputs, positions))
        require_like(case, self.value(tasks), got, want, tolerance)

    def read(self, case: str, tasks: Tasks, result: object, positions: torch.Tensor) -> Tensors:
        """What a result holds at some tokens, on the CPU.

        Raises:
            MismatchError: it is no plain tensors, or not where it should be.
        """
        return excerpt(self.value(tasks), self.tensors_of(case, tasks, result), positions, self.parts.plan.tokens)

    def tensors_of(self, case: str, tasks: Tasks, result: object) -> Tensors:
        """The tensors of a result.

        Raises:
            MismatchError: it is no plain tensors, or not where it should be.
        """
        return require_tensors(case, result, self.parts.plan.placement(tasks[-1].load.stage).device)

    def value(self, tasks: Tasks) -> str:
        """What a case makes."""
        return tasks[-1].load.stage.makes

    def excerpt(self, tasks: Tasks, inputs: Tensors, positions: torch.Tensor) -> Excerpt:
        """What some tokens need of the inputs of a case, and of what the model brings to its stages, on the CPU."""
        first, *others = _judged(tasks)
        brought: list[Tensors] = []
        for task in (*reversed(others), first):
            judge, load = judge_of(task), task.load
            brought.insert(0, judge.excerpt_of_brought(load, self.parts.model_state.brought(task), positions))
            if task is not first:
                positions = judge.reads(load, positions)
        return judge_of(first).excerpt(first.load, inputs, positions), *brought

    def wanted(self, tasks: Tasks, found: Excerpt) -> tuple[Tensors, Tolerance]:
        """What a case must make of an excerpt, and the tolerance."""
        tensors, *brought = found
        tolerance: Tolerance = 0.0
        for task, more in zip(_judged(tasks), brought, strict=True):
            tensors, tolerance = judge_of(task).wanted(self.parts.reference, *tensors, *more)
        return tensors, tolerance


def _judged(tasks: Tasks) -> Tasks:
    """Those of several that compute something: an upload among them changes nothing."""
    return [task for task in tasks if not task.load.stage.is_upload] or tasks


def judge_of(task: Task) -> type[Stage]:
    """Whose reference counts: the step's, and never the component's own."""
    return step_of(task.load.stage)


def require_tensors(what: str, result: object, device: torch.device) -> Tensors:
    """The result of a component, if it is plain tensors: of anything else nobody knows when it is computed.

    Raises:
        MismatchError: it is something else, or lies on another device.
    """
    tensors = result if isinstance(result, tuple) else (result,)
    for tensor in tensors:
        if type(tensor) is not torch.Tensor:
            raise MismatchError(f"{what}: {type(tensor).__name__} instead of an ordinary torch.Tensor")
        if tensor.layout != torch.strided or tensor.is_neg() or tensor.is_conj():
            raise MismatchError(f"{what}: a tensor that is computed when it is read, instead of a strided one")
        if tensor.device.type != device.type:
            raise MismatchError(f"{what}: a tensor on {tensor.device} instead of {device}")
    return tensors


def require_like(what: str, value: str, got: Tensors, want: Tensors, tolerance: Tolerance) -> None:
    """Compare the tensors of a value, on the CPU, with those that are wanted.

    Raises:
        MismatchError: as `require_equal`, or `require_close` where there is a tolerance.
    """
    if len(got) != len(want):
        raise MismatchError(f"{what}: {len(got)} tensors instead of {len(want)}")
    names = TENSORS_OF.get(value, ("",))
    for name, tensor, reference in zip(names, got, want, strict=True):
        label = f"{what}, {name}" if name else what
        if isinstance(tolerance, torch.Tensor) or tolerance:
            require_close(label, tensor, reference, tolerance)
        else:
            require_equal(label, tensor, reference)


def require_equal(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """Compare to the last bit.

    Raises:
        MismatchError: saying how many values differ.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise MismatchError(f"{what}: {got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}")
    different = int((got != want).sum())
    if different:
        raise MismatchError(f"{what}: {different} of {want.numel()} compared values differ from the reference")


def require_close(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> None:
    """Compare vectors (the last dimension) by |got - want| / |want|, all with one tolerance or each with its own.

    Raises:
        MismatchError: a vector is farther off than the tolerance, or not finite.
    """
    got = got.float()
    if got.shape != want.shape:
        raise MismatchError(f"{what}: {list(got.shape)} instead of {list(want.shape)}")
    error = (got - want).norm(dim=-1) / want.norm(dim=-1)
    wrong = ~(error <= tolerance)  # a NaN is wrong, too
    if wrong.any():
        worst, at = error[wrong].nan_to_num(nan=torch.inf).max(dim=0)
        allowed = float(torch.as_tensor(tolerance).expand(error.shape)[wrong][at])
        raise MismatchError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} compared vectors differ from the float32 reference, "
            f"by up to {float(worst):.2g} (tolerance {allowed:.3g})"
        )
