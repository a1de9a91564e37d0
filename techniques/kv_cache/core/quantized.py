"""Keys and values in a few bits, and attention over their codes.

An element is `low + step * code`, with a step and a lowest value for each group. A product with a group is therefore
one of codes with what the step scaled, and the lowest value times a sum: no element has to be restored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.families import cache as kv
from techniques.kv_cache.core.attending import linked
from techniques.kv_cache.core.codes import SCALE, Codes, dequantize, lift, lifted, pack, quantize, unpack


def head_width(config: Any) -> int:
    """Channels of a model's keys and values."""
    text = config.get_text_config(decoder=True)
    width: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return width


class Store(Protocol):
    """The keys, or the values, of one layer."""

    def fill(self, states: Tensor) -> None:
        """Take a prompt, `(batch, kv_heads, tokens, head_dim)`."""

    def append(self, state: Tensor) -> None:
        """Take one token, `(batch, kv_heads, head_dim)`."""

    def restored(self) -> Tensor:
        """All tokens, `(batch, kv_heads, seen, head_dim)`."""

    def steps(self) -> Tensor:
        """The step of each element, in the same shape; 0 for exact ones."""

    def held(self) -> list[Tensor]:
        """The storage held."""


class Keys(Store, Protocol):
    """Keys that can be asked."""

    def scores(self, query: Tensor) -> Tensor:
        """Products of queries `(batch, kv_heads, group, head_dim)` with all tokens, `(batch, kv_heads, group, seen)`.

        In float32.
        """


class Values(Store, Protocol):
    """Values that can be mixed."""

    def mixed(self, weights: Tensor) -> Tensor:
        """All tokens by their weights `(batch, kv_heads, group, seen)`: `(batch, kv_heads, group, head_dim)`.

        In float32.
        """


class Packed(ABC):
    """Groups of old tokens in few bits, and the latest tokens as they are: one layer's keys or values.

    When `keep + block` tokens are exact and one more comes, the `block` oldest of them are rounded. `block` is a
    multiple of `group`. Codes are packed along channels, so that a byte holds codes of one token.
    """

    def __init__(self, capacity: int, bits: int, group: int, keep: int, block: int) -> None:
        self.bits = bits
        self.group = group
        self.keep = keep
        self.block = block
        self.capacity = self._old(capacity)
        """Tokens that are rounded in the end [tokens]."""
        self.rounded = 0
        self.seen = 0

    def fill(self, states: Tensor) -> None:
        batch, heads, tokens, width = states.shape
        old = self._old(tokens)
        self.tail = states.new_zeros(batch, heads, self.keep + self.block, width)
        self.tail[:, :, : tokens - old] = states[:, :, old:]
        self.lift = lift(width, self.bits).to(states.device)
        self._allocate(states)
        self._round(states[:, :, :old])
        self.seen = tokens

    def append(self, state: Tensor) -> None:
        if self.seen - self.rounded == self.tail.shape[2]:
            self._round(self.tail[:, :, : self.block])
            self.tail[:, :, : self.keep] = self.tail[:, :, self.block :].clone()
        self.tail[:, :, self.seen - self.rounded] = state
        self.seen += 1

    def _old(self, tokens: int) -> int:
        return max(tokens - self.keep - 1, 0) // self.block * self.block

    @abstractmethod
    def _allocate(self, states: Tensor) -> None:
        """Storage `packed`, `step` and `low` for `capacity` tokens like `(batch, kv_heads, tokens, head_dim)`."""

    @abstractmethod
    def _round(self, states: Tensor) -> None:
        """Round whole blocks `(batch, kv_heads, tokens, head_dim)` behind those that are."""

    @abstractmethod
    def _by_token(self, states: Tensor) -> Tensor:
        """Groups -> `(batch, kv_heads, rounded, head_dim)`."""

    @abstractmethod
    def _groups(self) -> Codes:
        """What is rounded."""

    def _exact(self) -> Tensor:
        return self.tail[:, :, : self.seen - self.rounded]

    def restored(self) -> Tensor:
        return torch.cat([self._by_token(dequantize(self._groups())).to(self.tail.dtype), self._exact()], 2)

    def steps(self) -> Tensor:
        groups = self._groups()
        steps = self._by_token(groups.step.float().expand(groups.codes.shape))
        return torch.cat([steps, torch.zeros_like(self._exact(), dtype=torch.float32)], 2)

    def held(self) -> list[Tensor]:
        return [self.packed, self.step, self.low, self.tail]


class PerChannel(Packed):
    """Keys: a group is `group` tokens of one channel.

    Packed `(batch, kv_heads, groups, head_dim * bits / 8, group)`, steps and lowest values
    `(batch, kv_heads, groups, head_dim)`.
    """

    def _allocate(self, states: Tensor) -> None:
        batch, heads, _, width = states.shape
        rows = (batch, heads, self.capacity // self.group)
        self.packed = states.new_zeros(*rows, width * self.bits // 8, self.group, dtype=torch.uint8)
        self.step, self.low = (states.new_zeros(*rows, width, dtype=SCALE) for _ in range(2))

    def _round(self, states: Tensor) -> None:
        made = quantize(states.unflatten(2, (-1, self.group)).mT, self.bits)
        places = slice(self.rounded // self.group, (self.rounded + states.shape[2]) // self.group)
        self.packed[:, :, places] = pack(made.codes, self.bits)
        self.step[:, :, places], self.low[:, :, places] = made.step[..., 0], made.low[..., 0]
        self.rounded += states.shape[2]

    def _by_token(self, states: Tensor) -> Tensor:
        return states.mT.flatten(2, 3)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Packed, step and low of what is rounded."""
        packed, step, low = (part[:, :, : self.rounded // self.group] for part in (self.packed, self.step, self.low))
        return packed, step, low

    def _groups(self) -> Codes:
        packed, step, low = self._parts()
        return Codes(unpack(packed, self.bits), step[..., None], low[..., None])

    def scores(self, query: Tensor) -> Tensor:
        query = query.float()
        packed, step, low = self._parts()
        codes = lifted(packed, self.bits)  # (batch, kv_heads, groups, head_dim, group)
        scaled = (query / self.lift)[:, :, None] * step[:, :, :, None]  # (batch, kv_heads, groups, queries, head_dim)
        made = scaled @ codes.float()
        made += (query @ low.float().mT).mT[..., None]
        return torch.cat([made.transpose(2, 3).flatten(3), query @ self._exact().float().mT], -1)


class PerToken(Packed):
    """Values: a group is `group` channels of one token.

    Packed `(batch, kv_heads, head_dim * bits / 8, tokens)`, steps and lowest values
    `(batch, kv_heads, head_dim / group, tokens)`: products run along tokens.
    """

    def _allocate(self, states: Tensor) -> None:
        batch, heads, _, width = states.shape
        self.packed = states.new_zeros(batch, heads, width * self.bits // 8, self.capacity, dtype=torch.uint8)
        rows = (batch, heads, width // self.group, self.capacity)
        self.step, self.low = (states.new_zeros(rows, dtype=SCALE) for _ in range(2))

    def _round(self, states: Tensor) -> None:
        made = quantize(states.unflatten(-1, (-1, self.group)), self.bits)
        places = slice(self.rounded, self.rounded + states.shape[2])
        self.packed[..., places] = pack(made.codes.flatten(-2).mT, self.bits)
        self.step[..., places], self.low[..., places] = made.step[..., 0].mT, made.low[..., 0].mT
        self.rounded = places.stop

    def _by_token(self, states: Tensor) -> Tensor:
        return states.transpose(-1, -2).flatten(2, 3).mT

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Packed, step and low of what is rounded."""
        packed, step, low = (part[..., : self.rounded] for part in (self.packed, self.step, self.low))
        return packed, step, low

    def _groups(self) -> Codes:
        packed, step, low = self._parts()
        codes = unpack(packed, self.bits).unflatten(2, (-1, self.group))
        return Codes(codes.mT, step[..., None], low[..., None])

    def mixed(self, weights: Tensor) -> Tensor:
        packed, step, low = self._parts()
        codes = lifted(packed, self.bits).unflatten(2, (-1, self.group))  # (batch, kv_heads, groups, group, rounded)
        old = weights[..., : self.rounded]
        scaled = old[:, :, None] * step[:, :, :, None]  # (batch, kv_heads, groups, queries, rounded)
        made = scaled @ codes.float().mT / self.lift.unflatten(0, (-1, 1, self.group))
        made += (old @ low.float().mT).mT[..., None]  # (batch, kv_heads, groups, queries, group)
        return made.transpose(2, 3).flatten(3) + weights[..., self.rounded :] @ self._exact().float()


class QuantizedLayer(kv.LossyLayer):
    """Keys and values of one layer, stored in few bits; a new token attends to the codes.

    The prompt attends to itself as it is, and is stored behind that.
    """

    reads_prompt = False

    def __init__(self, keys: Keys, values: Values) -> None:
        super().__init__()
        self.stores = (keys, values)
        self.shape = (0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.shape = (key_states.shape[0], key_states.shape[1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store `(batch, kv_heads, new, head_dim)`; the keys returned behind the prompt point to this layer."""
        new = key_states.shape[-2]
        states = (key_states, value_states)
        prompt = self.seen == 0
        self.seen += new
        if prompt:
            self.lazy_initialization(key_states, value_states)
            for store, state in zip(self.stores, states, strict=True):
                store.fill(state)
            return states
        assert new == 1, f"{new} tokens at once behind the prompt: a mask per token is not supported"
        for store, state in zip(self.stores, states, strict=True):
            store.append(state[:, :, 0])
        return linked(key_states, self), value_states

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        raise AssertionError("a prompt is stored as it comes")

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        """Attend with `(batch, heads, 1, head_dim)` to all tokens -> `(batch, 1, heads, head_dim)`."""
        batch, heads = query.shape[:2]
        keys, values = self.stores
        grouped = query.reshape(batch, self.shape[1], heads // self.shape[1], -1)
        weights = keys.scores(grouped).mul_(scaling).softmax(-1)
        return values.mixed(weights).to(query.dtype).reshape(batch, 1, heads, -1)

    def restored(self) -> tuple[Tensor, Tensor]:
        keys, values = (store.restored() for store in self.stores)
        return keys, values

    def steps(self) -> tuple[Tensor, Tensor]:
        keys, values = (store.steps() for store in self.stores)
        return keys, values

    def held(self) -> list[Tensor]:
        return [part for store in self.stores for part in store.held()]

    def positions(self) -> Tensor:
        return torch.arange(self.seen, device=self.device).expand(*self.shape, -1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0
