"""Codes of a few bits, packed into bytes, with a step and a lowest value for each group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SCALE = torch.float16
"""Type of steps and lowest values, as in KIVI: 4 bytes per group."""


class Codes(NamedTuple):
    """Groups in a few bits."""

    codes: Tensor
    """uint8 `(..., group)`, below `2 ** bits`."""
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
    return Codes(codes, step, low)


def dequantize(groups: Codes) -> Tensor:
    """The values that codes stand for: `(..., group)` in float32."""
    return groups.codes.float() * groups.step.float() + groups.low.float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 `(..., m, n)` below `2 ** bits` -> bytes `(..., m * bits / 8, n)`; m codes fill whole bytes.

    A byte holds codes that lie m * bits / 8 apart, so that unpacking moves whole parts and no single code.
    """
    parts = codes.unflatten(-2, (8 // bits, -1))
    packed = torch.zeros_like(parts[..., 0, :, :])
    for place in range(8 // bits):
        packed |= parts[..., place, :, :] << (bits * place)
    return packed


def lifted(packed: Tensor, bits: int) -> Tensor:
    """Bytes `(..., m, n)` -> uint8 `(..., m * 8 / bits, n)`: codes where they lie in their byte, times `lift`.

    So none is moved; eight bytes at once where rows are made of such.
    """
    wide = all(size % 8 == 0 for size in (packed.shape[-1], packed.storage_offset(), *packed.stride()[:-1]))
    words = packed.view(torch.int64) if wide else packed
    codes = words.new_empty(*words.shape[:-2], 8 // bits, *words.shape[-2:])
    for place in range(8 // bits):
        mask = bytes([(2**bits - 1) << (bits * place)] * words.element_size())
        torch.bitwise_and(words, int.from_bytes(mask, "little", signed=wide), out=codes[..., place, :, :])
    return codes.view(torch.uint8).flatten(-3, -2)


def lift(m: int, bits: int) -> Tensor:
    """What each of m rows of codes is multiplied by in `lifted`, `(m,)` uint8."""
    return 2 ** (bits * (torch.arange(m) // (m * bits // 8))).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes `(..., m, n)` -> codes uint8 `(..., m * 8 / bits, n)`."""
    codes = lifted(packed, bits)
    return codes // lift(codes.shape[-2], bits).to(codes.device)[:, None]
