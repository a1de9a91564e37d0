"""Keys and values in eight bits, each token's rounded on its own.

On a CPU a query in 16 bits is multiplied with the codes as they are, by a kernel that torch has for weights of eight
bits: less is read than of keys and values in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from techniques.kv_cache.core.codes import SCALE

BLOCK = 32
"""The kernel reads so many elements at once, and beyond the end of a row that is no multiple of them."""
LARGEST = 127
"""Code of a token's largest element."""


class PerTokenInt8:
    """One layer's keys or values: an element is `step * code`, with a step for each token.

    Codes are int8, `(batch, kv_heads, capacity, head_dim)`, or `(batch, kv_heads, head_dim, capacity)` for values,
    whose products run along tokens, with a capacity rounded up to `BLOCK`; steps `(batch, kv_heads, capacity)`.
    """

    def __init__(self, capacity: int, values: bool) -> None:
        self.capacity = capacity
        self.values = values
        self.seen = 0

    def fill(self, states: Tensor) -> None:
        batch, heads, _, width = states.shape
        shape = (width, -(-self.capacity // BLOCK) * BLOCK) if self.values else (self.capacity, width)
        self.dtype = states.dtype
        self.codes = states.new_zeros(batch, heads, *shape, dtype=torch.int8)
        self.step = states.new_zeros(batch, heads, self.capacity, dtype=SCALE)
        self._take(states)

    def append(self, state: Tensor) -> None:
        self._take(state[:, :, None])

    def _take(self, states: Tensor) -> None:
        limits = torch.finfo(SCALE)
        places = slice(self.seen, self.seen + states.shape[2])
        step = self.step[:, :, places]
        # outwards to 16 bits, so that no element lies beyond the last code
        step.copy_((states.abs().amax(-1).float() * ((1 + limits.eps) / LARGEST)).clamp_(min=limits.tiny))
        self._by_token()[:, :, places] = (states / step.float()[..., None]).round_()
        self.seen = places.stop

    def scores(self, query: Tensor) -> Tensor:
        return products(query, self.codes[:, :, : self.seen]) * self.step[:, :, None, : self.seen].float()

    def mixed(self, weights: Tensor) -> Tensor:
        # what is not there yet weighs nothing
        scaled = weights.new_zeros(*weights.shape[:-1], self.codes.shape[-1], dtype=mixing_type(self.dtype))
        torch.mul(weights, self.step[:, :, None, : self.seen], out=scaled[..., : self.seen])
        return products(scaled, self.codes).float()

    def restored(self) -> Tensor:
        return (self._by_token()[:, :, : self.seen] * self._each().float()).to(self.dtype)

    def steps(self) -> Tensor:
        return self._each().float().expand_as(self._by_token()[:, :, : self.seen])

    def held(self) -> list[Tensor]:
        return [self.codes, self.step]

    def _by_token(self) -> Tensor:
        return self.codes.transpose(-1, -2) if self.values else self.codes

    def _each(self) -> Tensor:
        return self.step[:, :, : self.seen, None]


def mixing_type(dtype: torch.dtype) -> torch.dtype:
    """Of weights times steps: bfloat16 where the kernel wants it; in float16 small ones of a long context are 0."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def products(rows: Tensor, codes: Tensor) -> Tensor:
    """Of rows `(batch, kv_heads, group, n)` with codes `(batch, kv_heads, m, n)`: `(batch, kv_heads, group, m)`.

    Codes are int8, or uint8 below 128. In float32; where the kernel for 16 bits serves, in the rows' type.
    """
    kernel = rows.device.type == "cpu" and "AVX" in torch.backends.cpu.get_cpu_capability()
    if not kernel or rows.dtype != torch.bfloat16 or codes.shape[-1] % BLOCK or not codes.numel():
        return rows.float() @ codes.float().mT
    ones = rows.new_ones(codes.shape[2])
    each = zip(rows.flatten(0, 1).unbind(), codes.view(torch.int8).flatten(0, 1).unbind(), strict=True)
    return torch.stack([torch._weight_int8pack_mm(*pair, ones) for pair in each]).unflatten(0, rows.shape[:2])
