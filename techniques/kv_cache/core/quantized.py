"""Keys and values in a few bits, and attention over their codes.

An element is `low + step * code`, with a step and a lowest value for each group. A product with a group is therefore
one with its codes, times the step, and the lowest value times a sum: no element has to be restored.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from bench.families import cache as kv
from techniques.kv_cache.core.attending import linked
from techniques.kv_cache.core.codes import SCALE, Codes, dequantize, quantize, unpack


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


class PerToken:
    """Groups along the channels of one token; the latest `residual` tokens are exact, in a ring."""

    def __init__(self, capacity: int, bits: int, group: int, residual: int) -> None:
        self.bits = bits
        self.group = group
        self.residual = residual
        self.rounded = max(capacity - residual, 0)
        """Tokens that are rounded in the end [tokens]."""
        self.seen = 0

    def fill(self, states: Tensor) -> None:
        batch, heads, tokens, width = states.shape
        rows = (batch, heads, self.rounded, width // self.group)
        self.codes = Codes(
            states.new_zeros(*rows, self.group * self.bits // 8, dtype=torch.uint8),
            states.new_zeros(*rows, 1, dtype=SCALE),
            states.new_zeros(*rows, 1, dtype=SCALE),
        )
        self.ring = states.new_zeros(batch, heads, self.residual, width)
        old = max(tokens - self.residual, 0)
        self._round(slice(0, old), states[:, :, :old])
        for at in range(old, tokens):
            self.ring[:, :, at % self.residual] = states[:, :, at]
        self.seen = tokens

    def append(self, state: Tensor) -> None:
        slot = self.seen % self.residual
        old = self.seen - self.residual
        if old >= 0:
            self._round(slice(old, old + 1), self.ring[:, :, slot : slot + 1])
        self.ring[:, :, slot] = state
        self.seen += 1

    def _round(self, places: slice, states: Tensor) -> None:
        for stored, made in zip(self.codes, quantize(states.unflatten(-1, (-1, self.group)), self.bits), strict=True):
            stored[:, :, places] = made

    @property
    def old(self) -> int:
        """Tokens that are rounded [tokens]."""
        return max(self.seen - self.residual, 0)

    def _rounded(self) -> Codes:
        return Codes(*(part[:, :, : self.old] for part in self.codes))

    def _exact(self) -> Tensor:
        """The latest tokens, in the text's order."""
        return self.ring[:, :, [at % self.residual for at in range(self.old, self.seen)]]

    def scores(self, query: Tensor) -> Tensor:
        query = query.float()
        codes, step, low = self._floats()
        made = low @ query.unflatten(-1, (-1, self.group)).sum(-1).transpose(-1, -2)  # (batch, kv_heads, old, group)
        scores = made.transpose(-1, -2)
        for part, own in enumerate(query.split(self.group, -1)):
            scores = scores + own @ codes[..., part, :].transpose(-1, -2) * step[..., part].unsqueeze(-2)
        return torch.cat([scores, query @ self._exact().float().transpose(-1, -2)], -1)

    def mixed(self, weights: Tensor) -> Tensor:
        codes, step, low = self._floats()
        of_old = weights[..., : self.old]
        parts = [(of_old * step[..., part].unsqueeze(-2)) @ codes[..., part, :] for part in range(codes.shape[-2])]
        made = torch.cat(parts, -1) + (of_old @ low).repeat_interleave(self.group, -1)
        return made + weights[..., self.old :] @ self._exact().float()

    def _floats(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `(batch, kv_heads, old, groups, group)`, steps and lowest values `(batch, kv_heads, old, groups)`."""
        packed, step, low = self._rounded()
        return unpack(packed, self.bits).float(), step[..., 0].float(), low[..., 0].float()

    def restored(self) -> Tensor:
        rounded = dequantize(self._rounded(), self.bits).flatten(-2).to(self.ring.dtype)
        return torch.cat([rounded, self._exact()], 2)

    def steps(self) -> Tensor:
        step = self._rounded().step.float().expand(-1, -1, -1, -1, self.group).flatten(-2)
        return torch.cat([step, torch.zeros_like(self._exact(), dtype=torch.float32)], 2)

    def held(self) -> list[Tensor]:
        return [*self.codes, self.ring]


class PerChannel:
    """Groups along `group` tokens of one channel; rounded in blocks of `residual` tokens, exact until one is full."""

    def __init__(self, capacity: int, bits: int, group: int, residual: int) -> None:
        self.bits = bits
        self.group = group
        self.residual = residual
        self.blocks = max(capacity - 1, 0) // residual
        """Blocks that are rounded in the end: the last token's own block is not."""
        self.rounded = 0
        self.seen = 0

    def fill(self, states: Tensor) -> None:
        batch, heads, tokens, width = states.shape
        rows = (batch, heads, self.blocks * self.residual // self.group, width)
        self.codes = Codes(
            states.new_zeros(*rows, self.group * self.bits // 8, dtype=torch.uint8),
            states.new_zeros(*rows, 1, dtype=SCALE),
            states.new_zeros(*rows, 1, dtype=SCALE),
        )
        self.tail = states.new_zeros(batch, heads, self.residual, width)
        whole = max(tokens - 1, 0) // self.residual * self.residual
        self._round(states[:, :, :whole])
        self.tail[:, :, : tokens - whole] = states[:, :, whole:]
        self.seen = tokens

    def append(self, state: Tensor) -> None:
        if self.seen - self.rounded == self.residual:
            self._round(self.tail)
        self.tail[:, :, self.seen - self.rounded] = state
        self.seen += 1

    def _round(self, states: Tensor) -> None:
        """Round whole blocks `(batch, kv_heads, tokens, head_dim)` behind those that are."""
        groups = states.unflatten(2, (-1, self.group)).transpose(-1, -2)  # (batch, kv_heads, groups, head_dim, group)
        first = self.rounded // self.group
        for stored, made in zip(self.codes, quantize(groups, self.bits), strict=True):
            stored[:, :, first : first + groups.shape[2]] = made
        self.rounded += states.shape[2]

    def _filled(self) -> Codes:
        return Codes(*(part[:, :, : self.rounded // self.group] for part in self.codes))

    def scores(self, query: Tensor) -> Tensor:
        query = query.float()
        packed, step, low = self._filled()
        codes = unpack(packed, self.bits).float()  # (batch, kv_heads, groups, head_dim, group)
        scaled = query[:, :, None] * step.float().transpose(-1, -2)  # (batch, kv_heads, groups, queries, head_dim)
        made = scaled @ codes + (query[:, :, None] @ low.float())
        tail = self.tail[:, :, : self.seen - self.rounded].float()
        return torch.cat([made.transpose(2, 3).flatten(3), query @ tail.transpose(-1, -2)], -1)

    def restored(self) -> Tensor:
        groups = dequantize(self._filled(), self.bits).to(self.tail.dtype)
        rounded = groups.transpose(-1, -2).flatten(2, 3)
        return torch.cat([rounded, self.tail[:, :, : self.seen - self.rounded]], 2)

    def steps(self) -> Tensor:
        step = self._filled().step.float().expand(-1, -1, -1, -1, self.group)
        exact = self.tail[:, :, : self.seen - self.rounded]
        return torch.cat([step.transpose(-1, -2).flatten(2, 3), torch.zeros_like(exact, dtype=torch.float32)], 2)

    def held(self) -> list[Tensor]:
        return [*self.codes, self.tail]


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
