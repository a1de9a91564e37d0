"""A technique's own code, run on tensors without contents: what lives when, and what is read and computed.

Everything runs under torch's fake tensors, on a pretended CPU. What follows from shapes and numbers alone is computed
truly: positions, masks and lengths, so that code which asks for them takes its usual way. What follows from a weight
is unknown: a technique that reads such a number reads 0, one that asks hears yes, one that chooses gets all; these are
counted.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

from bench.errors import Unsupported
from bench.models import Sources
from bench.predict import operations
from bench.predict.operations import Work
from bench.probes.tensors import StorageWatch
from bench.technique import Prepared, Step, Technique
from bench.workload import Built, Workload

_SCRATCH = -1
"""Names an operation's own block to the allocator; storages have the numbers of their births."""
aten = torch.ops.aten


class Allocator(Protocol):
    """Where storages come from."""

    @property
    def held(self) -> int:
        """What the device has given, free parts included [B]."""

    @property
    def idle(self) -> int:
        """The free part of it [B]."""

    @property
    def reserved(self) -> int:
        """The most that it took from a device with room [B]."""

    @property
    def least(self) -> int:
        """With how much of a device it would do [B]."""

    def take(self, key: int, size: int) -> None: ...
    def give(self, key: int) -> None: ...
    def trim(self) -> None: ...


@dataclass(frozen=True)
class Simulated:
    """One burst, of a training behind another one as warm-up, as it is measured."""

    parts: dict[str, int]
    """At the peak: bytes by the component that holds them, those of none as `activations`, what an operation takes
    inside itself as `operators` [B]."""
    idle: int
    """What the allocator kept free at the peak [B]."""
    reserved: int
    """What is taken from a device with room: at least the peak [B]."""
    least: int
    """What the device must have: at least the peak [B]."""
    operator: str
    """What ran when the peak was reached."""
    steps: list[Work]
    guessed: int
    """How many numbers and answers were read that no shape tells."""

    @property
    def live(self) -> int:
        """In use at the peak [B]."""
        return sum(self.parts.values())


class Tracker(StorageWatch):
    """The memory probe's watch, on tensors without contents; it decides which are to have some."""

    def __init__(self, allocator: Allocator, copies: bool = False) -> None:
        super().__init__("meta", self)
        self.copies = copies
        """Whether kernels copy what `operations.scratch` says."""
        self.operators = 0
        """What the operation at the peak took inside itself [B]."""
        self._inside = 0
        self.allocator = allocator
        self.peak = 0
        self.idle = 0
        self.guessed = 0
        self.work: Work | None = None

    def rose(self, alive: int) -> bool:
        """Whether more is held than ever since `forget`."""
        if self.allocator.held <= self.peak:
            return False
        self.peak, self.idle = self.allocator.held, self.allocator.idle
        self.operators = self._inside
        return True

    def forget(self) -> None:
        """Begin again, with what lives now as the peak."""
        gc.collect()
        self.allocator.trim()
        self.peak = 0
        self.ask()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim" or operations.on_meta(args, kwargs):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            self.guessed += 1
            return operations.nothing(args[0].dtype)
        if operations.by_value(func, args, kwargs):
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            for tensor in operations.flat((result,)):
                self._meet(tensor.untyped_storage())
            return result
        before = self._births
        if func in operations.CHOOSING:
            self.guessed += 1
            result = operations.all_of(func, args)
            self._meet(result.untyped_storage())
        else:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._births > before:
            self.ask(func.__name__)
        if self.copies and (size := operations.scratch(func, args)):
            self._take_inside(size, func.__name__)
        if self.work is not None and not func.is_view:
            self.work.operations[operations.cost(func, args, kwargs, result)] += 1
        return result

    def _take_inside(self, size: int, operator: str) -> None:
        """Take scratch, ask, and give it back."""
        self.allocator.take(_SCRATCH, size)
        self._inside = size
        self.ask(operator)
        self._inside = 0
        self.allocator.give(_SCRATCH)

    def _is_composite(self, func: Any) -> bool:
        return func.namespace == "aten" and super()._is_composite(func)

    def _meet(self, storage: Any) -> Any:
        before = self._births
        self.kind = (
            storage.device.type
        )  # tensors without contents lie on `meta`, those with them on the CPU: both count
        life = super()._meet(storage)
        if life is not None and self._births > before:
            self.allocator.take(life.born, life.bytes)
        return life

    def _release(self, key: int) -> None:
        self.allocator.give(self._lives[key].born)
        super()._release(key)


def simulate(
    technique: Technique,
    workload: Workload,
    built: Built,
    sources: Sources,
    seed: int,
    allocator: Allocator,
    copies: bool = False,
) -> Simulated:
    """Prepare a technique and run a burst of its workload; of a training the second one is watched.

    Args:
        built: what `workload.build` made.
        allocator: a new one.
        copies: whether the device's kernels copy what `operations.scratch` says, as a CPU's do.

    Raises:
        Unsupported: the technique's way depends on values that only weights give, or torch refuses it on tensors
            without contents.
    """
    tracker = Tracker(allocator, copies)
    steps: list[Work] = []
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            with tracker:
                prepared = technique.prepare(sources)
            # training makes its moments in the first step, and no other burst is like those behind it
            for index in (-1, 0) if technique.trains else (0,):
                tracker.forget()
                steps = _burst(technique, prepared, workload, built, index, seed, tracker)
            named, unnamed = tracker.at_peak()
            parts = {**named, "activations": sum(unnamed.values()), "operators": tracker.operators}
            prepared.close()
    except DynamicOutputShapeException as error:
        raise Unsupported(f"cannot be foreseen: how large a tensor is depends on the weights ({error.func})") from None
    except RuntimeError as error:  # as of a library that moves its modules: torch exchanges no tensors without contents
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unsupported(f"cannot be foreseen: tensors without contents do not bear it ({reason})") from error
    reserved, least = max(tracker.peak, allocator.reserved), max(tracker.peak, allocator.least)
    return Simulated(parts, tracker.idle, reserved, least, tracker.operator, steps, tracker.guessed)


def _burst(
    technique: Technique,
    prepared: Prepared,
    workload: Workload,
    built: Built,
    index: int,
    seed: int,
    tracker: Tracker,
) -> list[Work]:
    def name() -> None:
        tracker.name({component: list(tensors) for component, tensors in prepared.holdings().items()})

    @contextlib.contextmanager
    def phase(mark: str) -> Iterator[None]:
        outer, tracker.phase = tracker.phase, mark
        try:
            yield
        finally:
            tracker.phase = outer
            name()

    name()
    with unset_fake_temporarily():
        job = replace(workload.burst(built, index, seed, "cpu"), phase=phase)
    done: list[Work] = []
    steps = technique.steps(prepared, job)
    while True:
        tracker.work = Work("prefill", 0)
        with tracker:
            step: Step | None = next(steps, None)
        if step is None:
            tracker.work = None
            return done
        tracker.name({"outputs": step.outputs})
        name()
        done.append(replace(tracker.work, kind=step.kind, tokens=step.tokens))
        del step
