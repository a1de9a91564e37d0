"""Follows the storages that operations make, from their birth to their release.

A dispatch mode sees every operation that torch carries out, forward and backward, and the storages that come out of
it. What an operation takes and gives back inside itself (a library's scratch, a copy it computes on) it does not see;
of that it knows only by how much the device's peak rose meanwhile.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 0.01
"""Behind an operation on more bytes than this share of the peak, the device is asked whether it rose."""


class Gauge(Protocol):
    """A device's peak, as it was when it was asked last."""

    peak: int
    """[B]"""

    def rose(self, alive: int) -> bool:
        """Ask; whether it is higher. `alive`: bytes of the storages that live now [B]."""


class Life:
    """A storage that lives, or lived when the peak was reached."""

    __slots__ = ("born", "bytes", "component", "phase", "reference")

    def __init__(self, size: int, born: int, phase: str) -> None:
        self.bytes = size
        self.born = born
        """How many storages were born before it."""
        self.phase = phase
        """The phase mark it was born in; '' outside of all."""
        self.component = ""
        """What `holdings()` calls it; '' while no component has named it."""
        self.reference: weakref.ref[UntypedStorage] | None = None


class StorageWatch(TorchDispatchMode):
    """While entered, registers every new storage on one kind of device; releases are noticed at any time."""

    def __init__(self, device: str, gauge: Gauge) -> None:
        super().__init__()
        self.kind = device.partition(":")[0]
        self.gauge = gauge
        self.phase = ""
        self.attention: set[str] = set()
        """Attention operators that ran, as torch names them."""
        self.total = 0
        """Bytes of all storages that live [B]."""
        self.operator = ""
        """What ran when the peak was reached; '' if it was there from the beginning."""
        self._asked = 0
        """Bytes that lived when the device was asked [B]."""
        self._composite: dict[Any, bool] = {}
        self._left_out: set[int] = set()
        self._lives: dict[int, Life] = {}
        self._births = 0
        self._births_at_peak = 0
        self._gone_since: list[Life] = []
        """Lives that ended after the peak, at which they were there."""

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Never count the storages of these; they must outlive the watch."""
        self._left_out.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def name(self, holdings: Mapping[str, Iterable[Tensor]]) -> None:
        """Let components name the storages they hold; the first to name one keeps it."""
        for component, tensors in holdings.items():
            for tensor in tensors:
                life = self._meet(tensor.untyped_storage())
                if life is not None and not life.component:
                    life.component = component

    def at_peak(self) -> tuple[Counter[str], Counter[str]]:
        """What lived at the peak: bytes by component, and those of no component by the phase of their birth."""
        named: Counter[str] = Counter()
        unnamed: Counter[str] = Counter()
        there = (life for life in self._lives.values() if life.born < self._births_at_peak)
        for life in (*there, *self._gone_since):
            if life.component:
                named[life.component] += life.bytes
            else:
                unnamed[life.phase] += life.bytes
        return named, unnamed

    def unnamed(self) -> int:
        """Bytes of living storages that no component has named [B]."""
        return sum(life.bytes for life in self._lives.values() if not life.component)

    def ask(self, operator: str = "") -> None:
        """Ask the device; if its peak rose, what lives now is what lived at the peak."""
        self._asked = self.total
        if not self.gauge.rose(self.total):
            return
        self.operator = operator
        self._births_at_peak = self._births
        self._gone_since.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and self._is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if "attention" in func.__name__:
            self.attention.add(func.__name__.partition(".")[0])
        touched = _bytes(args)
        for tensor in _tensors(result):
            self._meet(tensor.untyped_storage())
            touched += tensor.nbytes
        least = LARGE * self.gauge.peak
        if touched > least or self.total > self._asked + least:
            self.ask(func.__name__)
        return result

    def _is_composite(self, func: Any) -> bool:
        """Whether an operation is made of others; inference mode hands such over whole.

        Run whole, `matmul` would not see that weights require gradients, and copy them for a batched product.
        """
        if func not in self._composite:
            self._composite[func] = func._can_decompose()
        return self._composite[func]

    def _meet(self, storage: UntypedStorage) -> Life | None:
        key, size = storage._cdata, storage.nbytes()
        if storage.device.type != self.kind or key in self._left_out:
            return None
        life = self._lives.get(key)
        if life is None:
            life = self._lives[key] = Life(size, self._births, self.phase)
            life.reference = weakref.ref(storage, lambda _: self._release(key))
            self._births += 1
            self.total += size
        elif life.bytes != size:  # resized in place
            self.total += size - life.bytes
            life.bytes = size
        return life

    def _release(self, key: int) -> None:
        life = self._lives.pop(key)
        self.total -= life.bytes
        if life.born < self._births_at_peak:
            self._gone_since.append(life)


def _tensors(result: Any) -> Sequence[Tensor]:
    if isinstance(result, Tensor):
        return (result,)
    return [part for part in result if isinstance(part, Tensor)] if isinstance(result, list | tuple) else ()


def _bytes(arguments: Sequence[Any]) -> int:
    """Of the tensors in an operation's arguments, lists of tensors included."""
    total = 0
    for argument in arguments:
        if isinstance(argument, Tensor):
            total += argument.nbytes
        elif isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor):
            total += _bytes(argument)
    return total
