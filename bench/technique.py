"""What the author of a technique reads first: a technique prepares a model, then yields steps.

A technique is one file with one frozen class. Its fields are its parameters, its docstring is its card. It
contains no clock, no printing and no file access: the harness times the gaps between the steps, reads the
memory from outside and asks the family for quality.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.claim import Claim
    from bench.models import Sources

Kind = Literal["prefill", "resume", "decode", "train", "rollout"]
Axis = Literal["quality", "latency", "memory"]
Phase = Callable[[str], contextlib.AbstractContextManager[None]]

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def unmarked(name: str) -> contextlib.AbstractContextManager[None]:
    """The phase mark of the timing pass: it does nothing."""
    return _NOTHING


class Step(NamedTuple):
    """One unit of work: a prefill, a decoding round, an optimiser step, a rollout.

    To `resume` is to take up what an earlier burst has read; its time stands in no figure.
    """

    kind: Kind
    tokens: int
    """Trained on, or emitted, over all rows [tokens]. The harness counts emitted ids itself."""
    outputs: tuple[Tensor, ...] = ()
    """Emitted ids per row, each `(tokens_i,)`, in memory of their own; or the loss, `()`."""
    counts: Mapping[str, int] = {}
    """What only the technique can know: drafted, accepted, kept ..."""


@dataclass
class Prepared:
    """What a technique has made ready. The runner closes it."""

    model: nn.Module
    helpers: tuple[nn.Module, ...] = ()
    """Draft or reference networks: they cost memory, they are never scored."""
    state: Any = None
    """Optimizer, cache, compiled graph, adaptive draft length ..."""
    components: dict[str, Callable[[], Iterable[Tensor]]] = field(default_factory=dict)
    """Component -> a function that lists the tensors it holds now: those outside the networks, or parts of them."""

    def holdings(self) -> Mapping[str, Iterable[Tensor]]:
        """The tensors held at this moment, by component: weights, kv_cache, adapters, optimizer ..."""
        named = {name: list(tensors()) for name, tensors in self.components.items()}
        elsewhere = {id(tensor) for tensors in named.values() for tensor in tensors}
        weights = [t for t in (*self.model.parameters(), *self.model.buffers()) if id(t) not in elsewhere]
        held: dict[str, Iterable[Tensor]] = {"weights": weights}
        if self.helpers:
            held["helper_weights"] = [t for helper in self.helpers for t in (*helper.parameters(), *helper.buffers())]
        return held | named

    def close(self) -> None:
        """Let go of everything held."""
        self.state = None
        self.components = {}
        self.helpers = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a workload asks of a technique; each family has its own."""

    seed: int = 0
    phase: Phase = unmarked
    """`with job.phase("verify"):` marks a part of a step; only the profile pass measures it."""


class Technique(BaseModel, ABC):
    """Base of all techniques: the parameters are its fields, frozen and checked.

    Never derived from directly: a technique derives from its family's class in `bench.families`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    family: ClassVar[str]
    """Name of the family, set by the family's class."""
    primary: ClassVar[Mapping[Axis, str]]
    """The one metric per axis that is judged, set by the family's class."""
    source: ClassVar[str] = ""
    """The paper, with the section or algorithm that is implemented."""
    trains: ClassVar[bool] = False
    """Whether quality is that of a training run: with enough seeds they are its units, else it is of these models."""
    baseline: ClassVar[bool] = False
    """Whether other techniques of the family are compared with this one."""
    peer: ClassVar[bool] = False
    """Whether this is a library's version of a method, to check against and to beat."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name -> parameters: variants that only set parameters."""
    labels: ClassVar[tuple[str, ...]] = ()
    """What stands beside its name in lists and reports, since it decides what a figure says: `query-aware`."""
    claims: ClassVar[tuple[Claim, ...]] = ()
    """What its own paper says, as something that can be measured: a technique that extends another has none of its."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "claims" not in cls.__dict__:
            cls.claims = ()

    @abstractmethod
    def prepare(self, sources: Sources) -> Prepared:
        """Build the model from its source and whatever the technique adds to it.

        Raises:
            Unsupported: the technique cannot be applied to this model.
        """

    @property
    def train_work(self) -> float:
        """Of a full forward and backward pass over what a training step reads, for the plan's arithmetic."""
        return 1.0

    def calls(self, prepared: Any, job: Any) -> Mapping[str, Callable[[], object]]:
        """Pieces of a step that are to be timed on their own, apart from all bursts; every call leaves all as it was.

        A family that can predict its time from its pieces has them; nothing by default.
        """
        return {}

    @abstractmethod
    def steps(self, prepared: Any, job: Any) -> Iterator[Step]:
        """Do the job, one unit of work per `next()`.

        No context manager may be held across a `yield`, nothing is copied to the host for the harness' sake.
        """
