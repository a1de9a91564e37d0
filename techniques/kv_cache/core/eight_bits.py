"""Keys and values in eight bits, each token's rounded on its own.

On a CPU a query in 16 bits is multiplied with the codes as they are, by a kernel that torch has for weights of eight
bits: less is read than of keys and values in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from techniques.kv_cache.core.codes import SCALE, quantize

BLOCK = 32
"""The kernel reads so many elements at once, and beyond the end of a row that is no multiple of them."""
MIDDLE = 128
"""The code that is stored as 0: kernels ask for signed ones."""


class PerTokenInt8:
    """One layer's keys or values: an element is `low + step * (code + 128)`, with a step and a `low` for each token.

    Codes are int8, `(batch, kv_heads, capacity, head_dim)`, or `(batch, kv_heads, head_dim, capacity)` for values,
    whose products run along tokens, with a capacity rounded up to `BLOCK`; steps and lowest values
    `(batch, kv_heads, capacity)`.
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
        self.low = torch.zeros_like(self.step)
        self._take(states)

    def append(self, state: Tensor) -> None:
        self._take(state[:, :, None])

    def _take(self, states: Tensor) -> None:
        made = quantize(states, 8)
        places = slice(self.seen, self.seen + states.shape[2])
        self._by_token()[:, :, places] = (made.packed ^ MIDDLE).view(torch.int8)
        self.step[:, :, places], self.low[:, :, places] = made.step[..., 0], made.low[..., 0]
        self.seen = places.stop

    def scores(self, query: Tensor) -> Tensor:
        codes, (step, middle) = self.codes[:, :, : self.seen], self._line()
        made = _products(query, codes).mul_(step[:, :, None])
        return made.addcmul_(query.float().sum(-1, keepdim=True), middle[:, :, None])

    def mixed(self, weights: Tensor) -> Tensor:
        step, middle = self._line()
        # what is not there yet weighs nothing
        scaled = weights.new_zeros(*weights.shape[:-1], self.codes.shape[-1], dtype=self.dtype)
        torch.mul(weights, step[:, :, None], out=scaled[..., : self.seen])
        return _products(scaled, self.codes).add_(weights @ middle[..., None])

    def restored(self) -> Tensor:
        step, middle = (line[..., None] for line in self._line())
        return (self._by_token()[:, :, : self.seen].float() * step + middle).to(self.dtype)

    def steps(self) -> Tensor:
        return self._line()[0][..., None].expand_as(self._by_token()[:, :, : self.seen])

    def held(self) -> list[Tensor]:
        return [self.codes, self.step, self.low]

    def _by_token(self) -> Tensor:
        return self.codes.transpose(-1, -2) if self.values else self.codes

    def _line(self) -> tuple[Tensor, Tensor]:
        """Steps, and the values that are stored as 0: `(batch, kv_heads, seen)` each, in float32."""
        step, low = (part[:, :, : self.seen].float() for part in (self.step, self.low))
        return step, low + MIDDLE * step


def _products(rows: Tensor, codes: Tensor) -> Tensor:
    """Of rows `(batch, kv_heads, group, n)` with codes `(batch, kv_heads, m, n)`: `(batch, kv_heads, group, m)`.

    In float32; where the kernel for 16 bits serves, its sums are rounded to the rows' type.
    """
    kernel = "AVX" in torch.backends.cpu.get_cpu_capability()
    if rows.device.type != "cpu" or rows.dtype != torch.bfloat16 or codes.shape[-1] % BLOCK or not kernel:
        return rows.float() @ codes.float().mT
    ones = rows.new_ones(codes.shape[2])
    each = zip(rows.flatten(0, 1).unbind(), codes.flatten(0, 1).unbind(), strict=True)
    return torch.stack([torch._weight_int8pack_mm(*pair, ones) for pair in each]).float().unflatten(0, rows.shape[:2])
