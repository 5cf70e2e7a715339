"""Whether results are right: compared with plain references, at the edges of a batch and at tokens drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from engram_exp.errors import MismatchError
from engram_exp.machine.placement import poison_of
from engram_exp.run.parts import Parts
from engram_exp.stage import Task, Tensors, by_token, excerpt
from engram_exp.vocabulary import KV, TENSORS_OF, TOKEN_IDS

EDGE = 32  # tokens at each end of a batch and of its parts ...
SPREAD = 256  # ... and so many between them
GLANCE = 2  # tokens beside the first and the last that are looked at behind every sample


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
        self.whole = [plan.task(stage) for stage in plan.stages if stage.needs != stage.makes]

    def positions(self) -> torch.Tensor:
        """The tokens of one comparison, drawn anew each time between the edges."""
        return compared_tokens(self.parts.plan.tokens, self.lengths, self.generator)

    def few_positions(self) -> torch.Tensor:
        """The first token, the last, and some between them."""
        tokens = self.parts.plan.tokens
        drawn = torch.randint(tokens, (GLANCE,), generator=self.generator)
        return torch.unique(torch.cat([torch.tensor([0, tokens - 1]), drawn]))

    def require(self, case: str, task: Task | None, inputs: Tensors, result: object, positions: torch.Tensor) -> None:
        """Compare the result of one call.

        Args:
            case: what was called.
            task: its kind and load; None: all of the strategy.
            inputs: as they were read; the result has been waited for.
            result: what was returned.
            positions: the tokens to compare.

        Raises:
            MismatchError: it is not what the reference makes of these inputs.
        """
        got = self.read(case, task, result, positions)  # at once: what is written later comes too late
        want, tolerance = self.wanted(task, self.excerpt(task, inputs, positions))
        require_like(case, self.value(task), got, want, tolerance)

    def read(self, case: str, task: Task | None, result: object, positions: torch.Tensor) -> Tensors:
        """What a result holds at some tokens, on the CPU.

        Raises:
            MismatchError: it is no plain tensors, or not where it should be.
        """
        plan = self.parts.plan
        side = plan.device if task is None else plan.placement(task.load.stage).device
        return excerpt(self.value(task), require_tensors(case, result, side), positions, plan.tokens)

    def value(self, task: Task | None) -> str:
        """What a case makes."""
        return KV if task is None else task.load.stage.makes

    def excerpt(self, task: Task | None, inputs: Tensors, positions: torch.Tensor) -> Tensors:
        """What some tokens need of the inputs of a case, on the CPU."""
        kind, load = task or self.whole[0]
        return kind.excerpt(load, inputs, positions)

    def wanted(self, task: Task | None, inputs: Tensors) -> tuple[Tensors, float]:
        """What a case must make of such inputs, and the tolerance."""
        tolerance = 0.0
        for kind, _ in self.whole if task is None else [task]:
            inputs, tolerance = kind.wanted(self.parts, *inputs)
        return inputs, tolerance


class Glance:
    """A look at a few tokens behind every sample of a case, worked out beforehand so that a look costs next to nothing.

    Args:
        verifier: of the run.
        case: to look at.
        task: its kind and load; None: all of the strategy.
        inputs: what its calls read in turn. Where it is always the same, other cases may write to it meanwhile: what is
            looked at is put back before each sample.
    """

    def __init__(self, verifier: Verifier, case: str, task: Task | None, inputs: Sequence[Tensors]) -> None:
        self.verifier, self.case, self.task = verifier, case, task
        self.positions = positions = verifier.few_positions()
        excerpts = [verifier.excerpt(task, tensors, positions) for tensors in inputs]
        if len(inputs) == 1:
            want, self.tolerance = verifier.wanted(task, excerpts[0])
            parts = [want]
        else:  # all in one matrix product
            together = tuple(torch.cat(tensors) for tensors in zip(*excerpts, strict=True))
            want, self.tolerance = verifier.wanted(task, together)
            parts = list(zip(*(tensor.split(len(positions)) for tensor in want), strict=True))
        self.want = {id(tensors): part for tensors, part in zip(inputs, parts, strict=True)}
        needs = TOKEN_IDS if task is None else task.load.stage.needs
        self.kept = _few(needs, inputs[0], positions, verifier.parts.plan.tokens) if len(inputs) == 1 else []
        self.last: Tensors = ()

    def before(self, call: partial[Tensors]) -> None:
        """Put back what is read at these tokens, and poison what was returned there last."""
        for tensor, values, positions in self.kept:
            tensor[positions] = values
        for tensor, _, positions in _few(self.verifier.value(self.task), self.last, self.positions, self._tokens):
            tensor[positions] = poison_of(tensor.dtype)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """Compare what a call on one of the inputs returned.

        Raises:
            MismatchError: it differs from the reference.
        """
        got = self.verifier.read(self.case, self.task, result, self.positions)
        self.last = result if isinstance(result, tuple) else ()
        require_like(self.case, self.verifier.value(self.task), got, self.want[id(call.args[0])], self.tolerance)

    @property
    def _tokens(self) -> int:
        return self.verifier.parts.plan.tokens


def _few(
    value: str, tensors: Tensors, positions: torch.Tensor, tokens: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Views [T, ...] of the tensors of a value that have tokens, what stands at some of these, and where they are."""
    views = [view for tensor in tensors if (view := by_token(value, tensor, tokens)) is not None]
    places = [positions.to(view.device) for view in views]
    return [(view, view[place], place) for view, place in zip(views, places, strict=True)]


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


def require_like(what: str, value: str, got: Tensors, want: Tensors, tolerance: float) -> None:
    """Compare the tensors of a value, on the CPU, with those that are wanted.

    Raises:
        MismatchError: as `require_equal`, or `require_close` where there is a tolerance.
    """
    if len(got) != len(want):
        raise MismatchError(f"{what}: {len(got)} tensors instead of {len(want)}")
    names = TENSORS_OF.get(value, ("",))
    for name, tensor, reference in zip(names, got, want, strict=True):
        label = f"{what}, {name}" if name else what
        if tolerance:
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


def require_close(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Compare vectors (the last dimension) by |got - want| / |want|.

    Raises:
        MismatchError: a vector is farther off than the tolerance, or not finite.
    """
    got = got.float()
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
