"""What a stage of a strategy is: planned, as a kind of component that knows itself, and built.

A stage turns one value into the next (see `vocabulary`). What it costs, keeps and must equal is asked of its
component's class, before anything is built; nothing else of the project knows one step from another. Nothing here
imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Union

from engram_exp.layer.excerpt import Tensors, excerpt
from engram_exp.layer.shards import Among
from engram_exp.vocabulary import AS_IS, DEVICE, HOST, LINK

if TYPE_CHECKING:
    import torch

    from engram_exp.layer.fusion import FusionWeights
    from engram_exp.layer.geometry import EngramGeometry
    from engram_exp.layer.hash_plan import HashPlan
    from engram_exp.layer.row_format import RowFormat
    from engram_exp.layer.weights import ProjectionWeights

Tolerance = Union[float, "torch.Tensor"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a strategy before anything is built.

    Args:
        name: as the case and the CSV call it.
        place: that it keeps busy: host, link or device.
        needs, makes: values; an upload makes the value that it needs, in another place.
    """

    name: str
    place: str
    needs: str
    makes: str

    @property
    def side(self) -> str:
        """Where what it makes lies: host or device."""
        return DEVICE if self.place == LINK else self.place

    @property
    def read_from(self) -> str:
        """Where what it needs lies: host or device."""
        return HOST if self.place == LINK else self.place

    @property
    def is_upload(self) -> bool:
        """Whether it takes a value across the link as it is."""
        return self.needs == self.makes


@dataclass(frozen=True)
class Load:
    """What a run asks of one of its stages.

    Args:
        stage, options: which one it is, and those of its component.
        geometry, batches: of the layer, and how many rotate, each with rows of its own.
        sequences, tokens, dtype, table: B and T of a batch or a chunk, the compute dtype's name; host, device or disk.
        distinct_rows, distinct_in_all: share of the rows that a batch, or all, ask for that are distinct.
        cache_bytes, page_cache: of the device, that may keep rows; what of a file is in memory when a call begins.
        staged: in chunks: what one stage makes of a chunk, a cache may hold until the next, or the link, has read it.
        among: which other ranks there are.
    """

    stage: PlannedStage
    geometry: EngramGeometry
    sequences: int
    tokens: int
    dtype: str
    table: str = HOST
    batches: int = 1
    distinct_rows: float = 1.0
    distinct_in_all: float = 1.0
    cache_bytes: int = 0
    staged: bool = False
    page_cache: str = AS_IS
    options: Mapping[str, Any] = field(default_factory=dict)
    among: Among = Among()  # noqa: RUF009 - it cannot be changed

    def bytes_of(self, value: str) -> int:
        """Bytes of a value of these tokens."""
        return self.geometry.bytes_of(value, self.tokens, self.sequences)

    @property
    def memory(self) -> str:
        """The resource that streams of bytes on the stage's side take."""
        return f"{self.stage.side} memory"

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.geometry.row_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the table."""
        return self.geometry.table_bytes

    @property
    def row_ids(self) -> int:
        """Row ids of these tokens."""
        return self.tokens * self.geometry.columns

    @property
    def spread_bytes(self) -> int:
        """Bytes of memory that the rows of all rotating batches are spread over: at most the table."""
        asked = self.geometry.stored_bytes(self.tokens) * self.batches
        return min(self.table_bytes, round(asked * min(self.distinct_rows, self.distinct_in_all)))


class Reference(Protocol):
    """What references are computed from."""

    geometry: EngramGeometry
    row_format: RowFormat
    tolerance: float

    def stored(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] of row ids, on the CPU."""

    @property
    def hash_plan(self) -> HashPlan:
        """The layer's hash constants."""

    @property
    def reference_weights(self) -> ProjectionWeights:
        """The projection's parameters on the CPU, in float32."""

    @property
    def reference_fusion(self) -> FusionWeights:
        """The fusion's, likewise."""


class Stage:
    """A kind of component, as far as it knows itself without being built; the base class of every step's components.

    A component is built from keyword arguments (parts of the run and its own options) and is called with tensors.
    Resources are those of `measure.limits`: bytes on the link or in a memory, rows, FLOPs.
    """

    built_from: ClassVar[tuple[str, ...]] = ("max_tokens", "placement")  # parts of the run, beside its own options
    reads_table: ClassVar[bool] = False  # it needs the table
    rotates: ClassVar[bool] = False  # its time depends on the values that it reads: every batch has its own
    compares_all: ClassVar[bool] = False  # its reference is quick enough for every token of a batch

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """The fewest bytes to read and write, each row as often as it is asked for."""
        return load.bytes_of(load.stage.needs) + load.bytes_of(load.stage.makes)

    @classmethod
    def flops(cls, load: Load) -> int:
        """Floating-point operations."""
        return 0

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """The least that must be done, by resource."""
        return {load.memory: cls.bytes_moved(load)}

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Bytes of its buffers, by side of the link."""
        return {load.stage.side: load.bytes_of(load.stage.makes)}

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """Bytes, by side, that all stages of this kind use together."""
        return {}

    @classmethod
    def example(cls, reference: Reference, tokens: int) -> torch.Tensor:
        """Something that it could have made, [T, ...]: input for a stage behind it that is timed alone."""
        raise TypeError(f"{cls.__name__} makes nothing that another stage could be timed on")

    @classmethod
    def arranged(cls, flat: torch.Tensor, load: Load) -> Tensors:
        """An example as the component hands it on."""
        return (flat,)

    @classmethod
    def brings(cls, load: Load) -> tuple[str, ...]:
        """Parts of the run that it is called with behind its inputs: what the model has there at each step."""
        return ()

    @classmethod
    def reads(cls, load: Load, positions: torch.Tensor) -> torch.Tensor:
        """The tokens of whose inputs it makes some tokens, int64 positions among T."""
        return positions

    @classmethod
    def excerpt(cls, load: Load, inputs: Tensors, positions: torch.Tensor) -> Tensors:
        """What some tokens, int64 positions among T, need of its inputs, on the CPU."""
        return excerpt(load.stage.needs, inputs, cls.reads(load, positions), load.tokens)

    @classmethod
    def excerpt_of_brought(cls, load: Load, brought: Tensors, positions: torch.Tensor) -> Tensors:
        """What they need of what the model brings, on the CPU."""
        return ()

    @classmethod
    def wanted(cls, reference: Reference, *inputs: torch.Tensor) -> tuple[Tensors, Tolerance]:
        """What a correct component makes of inputs, and of what the model brings, on the CPU, by a plain reference; and
        how far off a vector, or each of them, may be: |got - wanted| / |wanted|; 0: equal to the last bit."""
        raise TypeError(f"{cls.__name__} has no reference")


def kind_of(component: type, step: type[Stage]) -> type[Stage]:
    """The kind of a component; one that is no `Stage` itself is what its step usually is."""
    return component if issubclass(component, Stage) else type(component.__name__, (component, step), {})


class Task(NamedTuple):
    """A kind of stage, and what is asked of it."""

    kind: type[Stage]
    load: Load

    def of_tokens(self, tokens: int) -> Task:
        """The same for another number of tokens."""
        return Task(self.kind, replace(self.load, tokens=tokens))


@dataclass(frozen=True)
class BuiltStage:
    """A stage that is ready to run.

    Args:
        planned, kind: what it is, and its component's class.
        run: takes the tensors of the value that it needs and returns those that it makes.
        component: that runs it, for those who ask it for more.
    """

    planned: PlannedStage
    kind: type[Stage]
    run: Callable[[Tensors], Tensors]
    component: Any = None

    @property
    def name(self) -> str:
        """As the case and the CSV call it."""
        return self.planned.name


@dataclass(frozen=True)
class Strategy:
    """Stages that follow each other; called on a batch, all of a strategy return keys [T, M, C] and value [T, C] on the
    device or, with a fusion, the hidden state [T, M, C] there."""

    stages: Sequence[BuiltStage]

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run every stage. Work on the device may still be under way then, whose buffers the next call writes: the
        caller waits in between."""
        for stage in self.stages:
            tensors = stage.run(tensors)
        return tensors


def as_stage_function(component: Callable[..., Any], brought: Tensors = ()) -> Callable[[Tensors], Tensors]:
    """Let a component that takes tensors, and behind them those that the model brings, and returns one or several be
    chained with others."""

    def run(tensors: Tensors) -> Tensors:
        result = component(*tensors, *brought)
        return result if isinstance(result, tuple) else (result,)

    return run
