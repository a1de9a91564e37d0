"""A key/value cache of fixed capacity, shared by the families that generate.

The library's dynamic cache copies all keys and values at every step; this one writes into storage that is there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from bench.errors import Unsupported
from bench.technique import Phase, unmarked


class PreallocatedLayer(CacheLayerMixin):
    """Keys and values of one layer, `(batch, kv_heads, capacity, head_dim)` each, every row filled from the left.

    Rows may hold different numbers of tokens; what lies behind a row's last token is for the mask to hide.
    """

    is_croppable = True

    def __init__(self, capacity: int, is_sliding: bool = False) -> None:
        super().__init__()
        self.capacity = capacity
        self.is_sliding = is_sliding
        self.lengths: list[int] = []
        """Tokens held, per row; none before the first update."""
        self.starts: Tensor | None = None
        """While a pass of fixed shape runs: where each row's new tokens go, `(batch,)`; `lengths` stay as they are."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, _ = key_states.shape
        # zeros: a masked token weighs nothing, but nothing times NaN is NaN
        self.keys = key_states.new_zeros(batch, heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, heads, self.capacity, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.lengths = [0] * batch
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `(batch, kv_heads, new, head_dim)` to the rows; return views as long as the longest row."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.starts is not None:
            rows = torch.arange(len(self.starts), device=self.device)[:, None]
            places = self.starts[:, None] + torch.arange(key_states.shape[-2], device=self.device)
            self.keys[rows, :, places] = key_states.transpose(1, 2)
            self.values[rows, :, places] = value_states.transpose(1, 2)
            return self.keys, self.values
        starts, self.lengths = self.lengths, [length + key_states.shape[-2] for length in self.lengths]
        longest = max(self.lengths)
        assert longest <= self.capacity, f"cache of {self.capacity} tokens is asked to hold {longest}"
        alike = len(set(starts)) == 1
        for row, start, end in [(slice(None), starts[0], longest)] if alike else self._rows(starts):
            self.keys[row, :, start:end] = key_states[row]
            self.values[row, :, start:end] = value_states[row]
        return self.keys[:, :, :longest], self.values[:, :, :longest]

    def _rows(self, starts: list[int]) -> list[tuple[slice, int, int]]:
        spans = enumerate(zip(starts, self.lengths, strict=True))
        return [(slice(row, row + 1), start, end) for row, (start, end) in spans]

    def keep(self, held: Sequence[int], places: Sequence[Sequence[int]] | None = None) -> None:
        """Keep the first `held` tokens of each row and, of those behind, the ones at `places`, counted from there."""
        for row, start in enumerate(held):
            self.lengths[row] = start
            if places is not None and len(places[row]):
                self.lengths[row] = end = start + len(places[row])
                if list(places[row]) == list(range(len(places[row]))):
                    continue
                moved = torch.tensor(places[row], device=self.device) + start
                self.keys[row, :, start:end] = self.keys[row, :, moved]
                self.values[row, :, start:end] = self.values[row, :, moved]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(self.lengths, default=0)

    def get_max_length(self) -> int:
        return self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens of every row (the library's sign: negative)."""
        self.lengths = [length + tokens_to_remove for length in self.lengths]


class EvictingLayer(CacheLayerMixin):
    """Keys and values of one layer that lets some of them go, and can say which ones it still holds.

    What it says is checked by the mask oracle (`bench.families.kv_oracle`) against a model that never forgets.
    `keys` and `values` must be storage of the size that is held, no views of anything larger.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.phase: Phase = unmarked
        """Marks what letting go takes, inside a step: `choose` behind the prompt, `evict` behind a new token."""

    @abstractmethod
    def positions(self) -> Tensor:
        """The tokens held by each head: `(batch, kv_heads, most)` int64, -1 where a head holds fewer than most.

        From the end of a decoding step's `update` to the layer's attention: what this token attends to, itself
        included.
        """

    def reading(self, ids: Tensor) -> None:
        """Be told the ids `(batch, new)` that are read next, before their keys come."""

    def seen_at(self) -> Tensor:
        """The position at which each of them is seen, in the same order, for a query at its own position."""
        return self.positions()

    def held(self) -> list[Tensor]:
        """The storage held."""
        return [self.keys, self.values]

    def get_seq_length(self) -> int:
        """Tokens seen, not kept: the models derive positions from it."""
        return self.seen

    def get_max_length(self) -> int:
        return -1


class LossyLayer(EvictingLayer):
    """Keys and values of one layer that holds all tokens, but not exactly.

    What it says is checked by `bench.families.kv_rounding` against what went in.
    """

    @abstractmethod
    def restored(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they are attended to, `(batch, kv_heads, seen, head_dim)` each, in the text's order."""

    @abstractmethod
    def steps(self) -> tuple[Tensor, Tensor]:
        """The distance between neighbouring values that each element can take, in the same shapes; 0 for exact ones."""


def preallocated(config: Any, capacity: int, ahead: int = 0) -> Cache:
    """An empty cache for `capacity` tokens of text, and for `ahead` more that are read behind it and dropped again.

    Raises:
        Unsupported: the model's context is shorter, or its layers are no attention layers.
    """
    check_length(config, capacity)
    return Cache(layers=[PreallocatedLayer(capacity + ahead, kind) for kind in sliding_layers(config)])


def check_length(config: Any, tokens: int) -> None:
    """Nothing, for a text that fits the model's context.

    Raises:
        Unsupported: it is longer, or the model has no attention layers.
    """
    limit = _attending(config).max_position_embeddings
    if limit is not None and tokens > limit:
        raise Unsupported(f"{tokens} tokens do not fit the model's context of {limit}")


def sliding_layers(config: Any) -> list[bool]:
    """Per layer, whether it attends to a sliding window only.

    Raises:
        Unsupported: a layer is neither full nor sliding attention.
    """
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        text = _attending(config)
        # as the library reads a configuration without a list: one window is every layer's
        window = getattr(text, "sliding_window", None)
        kinds = ["full_attention" if window is None else "sliding_attention"] * text.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise Unsupported(f"layers of type {', '.join(sorted(unknown))} have no key/value cache of this form")
    return [kind == "sliding_attention" for kind in kinds]


def _attending(config: Any) -> Any:
    """The configuration of the part of a model that reads text."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "num_attention_heads", None) is None:
        raise Unsupported(f"{config.model_type} has no attention layers, and so no key/value cache")
    return text


def tensors(cache: Cache | None) -> list[Tensor]:
    """The storage that a cache holds."""
    if cache is None:
        return []
    held: list[Tensor] = []
    for layer in cache.layers:
        if layer.is_initialized:
            held += layer.held() if isinstance(layer, EvictingLayer) else [layer.keys, layer.values]
    return held


def held_bytes(cache: Cache | None) -> int:
    """Bytes of the storage that a cache holds, storage that is shared counted once [B]."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(cache)}
    return sum(storages.values())


def kept_tokens(cache: Cache, padding: Tensor | None = None) -> float:
    """Tokens whose keys are held, the mean over rows, layers and heads.

    Args:
        padding: of the ids read, the first ones of each row that are none, `(batch,)`.
    """
    none = 0.0 if padding is None else float(padding.float().mean())
    counts = [
        float((layer.positions() >= 0).sum(-1).float().mean())
        if isinstance(layer, EvictingLayer)
        # the library's layers with a sliding window have seen more than they hold, and padding goes first
        else min(layer.get_seq_length() - none, float(layer.keys.shape[-2]))
        for layer in cache.layers
    ]
    return sum(counts) / len(counts)


def read(model: Any, ids: Tensor, cache: Cache, keep: int = 1, padding: Tensor | None = None) -> Tensor:
    """Forward `ids` (batch, new) behind what the cache has seen.

    Args:
        padding: how many of all the ids read, from the first on, are none: `(batch,)`.

    Returns:
        Logits `(batch, keep, vocabulary)` of the last `keep` tokens; all for 0.
    """
    seen = cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]
    mask = None
    if padding is not None:
        places = torch.arange(seen + ids.shape[1], device=ids.device)
        mask = (places >= padding[:, None]).long()  # (batch, seen + new)
        positions = (positions - padding[:, None]).clamp(min=0)
    for layer in cache.layers:
        if isinstance(layer, EvictingLayer):
            layer.reading(ids)
    kept: int | Tensor = keep
    if keep and len(ids) > 1:
        # an index, no slice: of several rows that is not contiguous, and the head would be copied for each of them
        kept = torch.arange(ids.shape[1] - keep, ids.shape[1], device=ids.device)
    logits: Tensor = model(
        input_ids=ids,
        past_key_values=cache,
        position_ids=positions,
        attention_mask=mask,
        use_cache=True,
        logits_to_keep=kept,
    ).logits
    return logits
