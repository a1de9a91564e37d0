"""Operations on tensors without contents: which of them are computed truly, and what each asks of a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from bench.technique import Kind

TRUE_BYTES = 2**26
"""No tensor larger than this is computed truly [B]."""
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
aten = torch.ops.aten


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


def nothing(dtype: torch.dtype) -> float | int | bool:
    """What is read where a number is unknown."""
    return dtype == torch.bool or (0.0 if dtype.is_floating_point else 0)


def on_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is on shapes alone in a real run too: nothing is held there."""
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    devices = (one.fake_device if isinstance(one, FakeTensor) else one.device for one in flat(args))
    return any(device.type == "meta" for device in devices)


def by_value(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is on known numbers alone: small tensors that are real, or whole numbers to begin with."""
    tensors = list(flat(args)) + list(flat(tuple(kwargs.values())))
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    if tensors:
        return sum(tensor.nbytes for tensor in tensors) <= TRUE_BYTES
    whole = kwargs.get("dtype") in _WHOLE or (func is aten.full.default and isinstance(args[1], int))
    return func in _COUNTS or (whole and func in _FILLED and _small(args))


def all_of(func: Any, args: tuple[Any, ...]) -> Tensor:
    """What comes out if every element is chosen."""
    if func is aten.nonzero.default:
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
    count = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
    return torch.empty(count, dtype=args[0].dtype)


_UNTOUCHED = {aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.empty_like.default}
CHOOSING = {aten.nonzero.default, aten.masked_select.default}
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


def flat(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from flat(tuple(argument))


def scratch(func: Any, args: tuple[Any, ...]) -> int:
    """What a CPU's kernel takes and gives back inside an operation, as far as it is known [B].

    A batched product in bfloat16 copies an operand that repeats one matrix: as often as it is repeated. In float32 it
    is read where it lies.
    """
    if func is not aten.bmm.default:
        return 0
    repeated = (one for one in args[:2] if one.untyped_storage().nbytes() < one.nbytes)
    return sum(one.nbytes for one in repeated if one.dtype == torch.bfloat16)


def cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[str, float, float]:
    """Dtype, floating-point operations and bytes read and written of one operation."""
    if func in _UNTOUCHED:
        return "", 0.0, 0.0
    read = list(flat(args))
    written = list(flat((result,)))
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
