"""Codes of a few bits, packed into bytes, with a step and a lowest value for each group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALE = torch.float16
"""Type of steps and lowest values, as in KIVI: 4 bytes per group."""


class Codes(NamedTuple):
    """Groups in a few bits."""

    packed: Tensor
    """uint8 `(..., group * bits / 8)`: the codes of the group's first part in the lowest bits, see `pack`."""
    step: Tensor
    """`(..., 1)`: between neighbouring values."""
    low: Tensor
    """`(..., 1)`: the value of code 0."""


def quantize(groups: Tensor, bits: int) -> Codes:
    """Round each group `(..., group)` to `2 ** bits` values in equal steps from its minimum to its maximum.

    Step and lowest value are rounded outwards to 16 bits, so that no element lies beyond the last code: each is
    within half of the stored step.
    """
    levels = 2**bits - 1
    eps = torch.finfo(SCALE).eps
    groups = groups.float()
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low = (least - least.abs() * eps).to(SCALE)
    step = ((most - low.float()) / levels * (1 + eps)).clamp(min=torch.finfo(SCALE).tiny).to(SCALE)
    codes = ((groups - low.float()) / step.float()).round().clamp(0, levels).to(torch.uint8)
    return Codes(pack(codes, bits), step, low)


def dequantize(codes: Codes, bits: int) -> Tensor:
    """The values that codes stand for: `(..., group)` in float32."""
    return unpack(codes.packed, bits).float() * codes.step.float() + codes.low.float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes `(..., n)` below `2 ** bits` -> bytes `(..., n * bits / 8)`; n codes fill whole bytes.

    A byte holds codes that lie n * bits / 8 apart, so that unpacking moves whole parts and no single code.
    """
    parts = codes.unflatten(-1, (8 // bits, -1))
    packed = torch.zeros_like(parts[..., 0, :])
    for place in range(8 // bits):
        packed |= parts[..., place, :] << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes `(..., n)` -> codes `(..., n * 8 / bits)`."""
    if bits == 8:
        return packed
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
