"""Contexts of different lengths in one batch: every row has a cache of its own, and padding is in none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families.kv_cache import KVCache, KVCachePrepared
from techniques.kv_cache.core.attending import Linked, link, linked


class Row(Linked, Protocol):
    """A layer of one row."""

    def update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]: ...
    def reading(self, ids: Tensor) -> None: ...
    def positions(self) -> Tensor: ...
    def seen_at(self) -> Tensor: ...
    def held(self) -> list[Tensor]: ...


class RowsLayer(kv.EvictingLayer):
    """One layer of a batch of rows that are padded on the left, as a layer for each of them.

    A row's layer is given the row without its padding: its positions begin behind that, its budget is of its own
    tokens. Padded keys take part in the prompt's attention only, where the mask hides them.
    """

    def __init__(self, rows: Sequence[Row], padding: list[int]) -> None:
        super().__init__()
        self.rows = rows
        self.padding = padding
        self.reads_prompt = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)`; the keys returned point to this layer."""
        for layer, keys, values in zip(self.rows, self._own(key_states), self._own(value_states), strict=True):
            layer.update(keys, values)
        self.reads_prompt = self.seen == 0
        self.seen += key_states.shape[-2]
        return linked(key_states, self), value_states

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        states = (self._own(part, first=True) for part in (query, keys, values))
        for layer, own_query, own_keys, own_values in zip(self.rows, *states, strict=True):
            if layer.reads_prompt:  # others have stored it as it came
                layer.read_prompt(own_query, own_keys, own_values, scaling)
        self.reads_prompt = False
        self.is_initialized = True

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        for layer in self.rows:
            layer.phase = self.phase
        pairs = zip(self.rows, query.split(1), strict=True)
        return torch.cat([layer.read_token(module, own, scaling) for layer, own in pairs])

    def reading(self, ids: Tensor) -> None:
        for row, (layer, skipped) in enumerate(zip(self.rows, self.padding, strict=True)):
            layer.reading(ids[row : row + 1, 0 if self.seen else skipped :])

    def _own(self, states: Tensor, first: bool | None = None) -> list[Tensor]:
        """Each row's part of `(batch, heads, new, head_dim)`, of a prompt without its padding."""
        prompt = self.seen == 0 if first is None else first
        rows = zip(states.split(1), self.padding, strict=True)
        return [row[:, :, skipped if prompt else 0 :] for row, skipped in rows]

    def positions(self) -> Tensor:
        """As of any layer; a row's positions are those of its text, the first token behind the padding is 0."""
        return self._side_by_side([layer.positions() for layer in self.rows])

    def seen_at(self) -> Tensor:
        return self._side_by_side([layer.seen_at() for layer in self.rows])

    def _side_by_side(self, rows: list[Tensor]) -> Tensor:
        most = max(row.shape[-1] for row in rows)
        return torch.cat([pad(row, (0, most - row.shape[-1]), value=-1) for row in rows])

    def held(self) -> list[Tensor]:
        return [tensor for layer in self.rows for tensor in layer.held()]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0


class RowByRow(KVCache):
    """Base of the techniques whose layers attend for themselves behind the prompt."""

    def padded_cache(self, prepared: KVCachePrepared, context: int, padding: list[int], new_tokens: int) -> Cache:
        link(prepared.model)
        rows = [self.cache(prepared, 1, context - pad, new_tokens).layers for pad in padding]
        return Cache(layers=[RowsLayer(of_layer, padding) for of_layer in zip(*rows, strict=True)])
