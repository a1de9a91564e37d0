"""A technique's own code, run on tensors without contents: what lives when, and what is read and computed.

Everything runs under torch's fake tensors, on a pretended CPU. What follows from shapes and numbers alone is computed
truly: positions, masks and lengths, so that code which asks for them takes its usual way. What follows from a weight
is unknown: a technique that reads such a number reads 0, one that asks hears yes, one that chooses gets all; these are
counted.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from bench.errors import Unsupported
from bench.models import Sources
from bench.probes.tensors import StorageWatch
from bench.technique import Kind, Prepared, Step, Technique
from bench.workload import Built, Workload

TRUE_BYTES = 2**26
"""No tensor larger than this is computed truly [B]."""
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
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
        """What the device must have for it [B]."""

    def take(self, key: int, size: int) -> None: ...
    def give(self, key: int) -> None: ...
    def trim(self) -> None: ...


@dataclass
class Work:
    """What one step asks of a device, operation by operation."""

    kind: Kind
    tokens: int
    operations: Counter[tuple[str, float, float]] = field(default_factory=Counter)
    """(dtype, floating-point operations, bytes read and written) -> how often."""

    def seconds(self, flops: Callable[[str], float], bandwidth: float) -> float:
        """At best: each operation is as long as the slower of its computing and its reading [s].

        Args:
            flops: dtype -> operations a second.
            bandwidth: bytes a second.
        """
        return sum(
            count * max(operations / flops(dtype), touched / bandwidth)
            for (dtype, operations, touched), count in self.operations.items()
        )

    @property
    def flops(self) -> float:
        return sum(count * operations for (_, operations, _), count in self.operations.items())

    @property
    def bytes(self) -> float:
        return sum(count * touched for (_, _, touched), count in self.operations.items())


@dataclass(frozen=True)
class Simulated:
    """One burst, of a training behind another one as warm-up, as it is measured."""

    parts: dict[str, int]
    """At the peak: bytes by the component that holds them, those of none as `activations` [B]."""
    idle: int
    """What the allocator kept free at the peak [B]."""
    reserved: int
    """What the device must have: at least the peak [B]."""
    operator: str
    """What ran when the peak was reached."""
    steps: list[Work]
    guessed: int
    """How many numbers and answers were read that no shape tells."""

    @property
    def live(self) -> int:
        """In tensors, at the peak [B]."""
        return sum(self.parts.values())


class Tracker(StorageWatch):
    """The memory probe's watch, on tensors without contents; it decides which are to have some."""

    def __init__(self, allocator: Allocator) -> None:
        super().__init__("meta", self)
        self.allocator = allocator
        self.peak = 0
        self.idle = 0
        self.guessed = 0
        self.work: Work | None = None

    def rose(self) -> bool:
        """Whether more is held than ever since `forget`."""
        if self.allocator.held <= self.peak:
            return False
        self.peak, self.idle = self.allocator.held, self.allocator.idle
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
        if func.namespace == "prim" or _on_meta(args, kwargs):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            self.guessed += 1
            return _nothing(args[0].dtype)
        if _by_value(func, args, kwargs):
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            for tensor in _flat((result,)):
                self._meet(tensor.untyped_storage())
            return result
        before = self._births
        if func in _CHOOSING:
            self.guessed += 1
            result = _all_of(func, args)
            self._meet(result.untyped_storage())
        else:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._births > before:
            self.ask(func.__name__)
        if self.work is not None and not func.is_view:
            self.work.operations[_cost(func, args, kwargs, result)] += 1
        return result

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
    technique: Technique, workload: Workload, built: Built, sources: Sources, seed: int, allocator: Allocator
) -> Simulated:
    """Prepare a technique and run a burst of its workload; of a training the second one is watched.

    Args:
        built: what `workload.build` made.
        allocator: a new one.

    Raises:
        Unsupported: the technique's way depends on values that only weights give.
    """
    tracker = Tracker(allocator)
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
            parts = {**named, "activations": sum(unnamed.values())}
            prepared.close()
    except DynamicOutputShapeException as error:
        raise Unsupported(f"cannot be foreseen: how large a tensor is depends on the weights ({error.func})") from None
    needed = max(tracker.peak, allocator.reserved)
    return Simulated(parts, tracker.idle, needed, tracker.operator, steps, tracker.guessed)


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


def _nothing(dtype: torch.dtype) -> float | int | bool:
    return dtype == torch.bool or (0.0 if dtype.is_floating_point else 0)


def _on_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is on shapes alone in a real run too: nothing is held there."""
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    devices = (one.fake_device if isinstance(one, FakeTensor) else one.device for one in _flat(args))
    return any(device.type == "meta" for device in devices)


def _by_value(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is on known numbers alone: small tensors that are real, or whole numbers to begin with."""
    tensors = list(_flat(args)) + list(_flat(tuple(kwargs.values())))
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    if tensors:
        return sum(tensor.nbytes for tensor in tensors) <= TRUE_BYTES
    whole = kwargs.get("dtype") in _WHOLE or (func is aten.full.default and isinstance(args[1], int))
    return func in _COUNTS or (whole and func in _FILLED and _small(args))


def _all_of(func: Any, args: tuple[Any, ...]) -> Tensor:
    """What comes out if every element is chosen."""
    if func is aten.nonzero.default:
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
    count = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
    return torch.empty(count, dtype=args[0].dtype)


_UNTOUCHED = {aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.empty_like.default}
_CHOOSING = {aten.nonzero.default, aten.masked_select.default}
_COUNTS = {
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.randperm.default,
    aten.randperm.generator,
}
_FILLED = {aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format}
_WHOLE = {torch.bool, torch.int32, torch.int64}


def _small(args: tuple[Any, ...]) -> bool:
    count = 1
    for side in args[0]:
        count *= side
    return count * 8 <= TRUE_BYTES


def _flat(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _flat(tuple(argument))


def _cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[str, float, float]:
    """Dtype, floating-point operations and bytes read and written of one operation."""
    if func in _UNTOUCHED:
        return "", 0.0, 0.0
    read = list(_flat(args))
    written = list(_flat((result,)))
    if func is aten.embedding.default:  # the rows that are looked up, not the table
        read = written
    dtype = next((tensor.dtype for tensor in written or read), torch.float32)
    operations = 0.0
    packet = func._overloadpacket
    if packet in flop_registry:
        operations = float(flop_registry[packet](*args, **kwargs, out_val=result))
    elif func.__name__.startswith(_ATTENTION):
        query, key, value = args[:3] if "backward" not in func.__name__ else args[1:4]
        operations = float(sdpa_flop_count(query.shape, key.shape, value.shape))
        if "backward" in func.__name__:  # five products for the forward's two, one of them computed again
            operations *= 2.5
    # an expanded tensor is read where it lies
    touched = sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in (*read, *written))
    return str(dtype).removeprefix("torch."), operations, float(touched)
