"""The storage that caches are made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.cache_utils import Cache, DynamicCache

from bench.errors import Unsupported
from bench.families import cache as kv


def states(*positions: int) -> torch.Tensor:
    """Keys `(1, 2, len, 4)` that read their position."""
    return torch.tensor(positions, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 4)


def config(**values: Any) -> Any:
    return AutoConfig.for_model("llama", num_hidden_layers=2, max_position_embeddings=64, **values)


def test_update_appends_in_place_and_returns_views_of_one_storage():
    layer = kv.PreallocatedLayer(8)
    keys, _ = layer.update(states(0, 1, 2), states(0, 1, 2))
    storage = keys.untyped_storage().data_ptr()
    keys, values = layer.update(states(3), states(3))
    assert keys[0, 0, :, 0].tolist() == values[0, 1, :, 3].tolist() == [0, 1, 2, 3]
    assert keys.untyped_storage().data_ptr() == storage == layer.keys.untyped_storage().data_ptr()
    assert layer.get_seq_length() == 4
    assert layer.get_mask_sizes(1) == (5, 0)


def test_crop_forgets_the_last_tokens():
    layer = kv.PreallocatedLayer(4)
    layer.update(states(0, 1, 2), states(0, 1, 2))
    layer.crop(-2)
    keys, _ = layer.update(states(7), states(7))
    assert keys[0, 0, :, 0].tolist() == [0, 7]


def test_more_than_the_capacity_is_a_bug():
    layer = kv.PreallocatedLayer(2)
    with pytest.raises(AssertionError, match="cache of 2 tokens is asked to hold 3"):
        layer.update(states(0, 1, 2), states(0, 1, 2))


def test_preallocated_needs_room_in_the_context():
    assert len(kv.preallocated(config(), 64).layers) == 2
    with pytest.raises(Unsupported, match="65 tokens do not fit the model's context of 64"):
        kv.preallocated(config(), 65)


def test_sliding_layers():
    assert kv.sliding_layers(config()) == [False, False]
    mistral = AutoConfig.for_model("mistral", num_hidden_layers=2, sliding_window=16)
    assert kv.sliding_layers(mistral) == [True, True]
    gemma = AutoConfig.for_model("gemma3_text", num_hidden_layers=6)
    assert kv.sliding_layers(gemma) == [True] * 5 + [False]
    text = SimpleNamespace(layer_types=["linear_attention"])
    with pytest.raises(Unsupported, match="linear_attention"):
        kv.sliding_layers(SimpleNamespace(get_text_config=lambda decoder: text))


def test_held_bytes_counts_storage_and_not_views():
    layer = kv.PreallocatedLayer(10)
    cache = Cache(layers=[layer])
    assert kv.held_bytes(cache) == kv.held_bytes(None) == 0
    layer.update(states(0), states(0))
    assert kv.held_bytes(cache) == 2 * 2 * 10 * 4 * 4
    layer.values = layer.keys[:, :, :3]
    assert kv.held_bytes(cache) == 2 * 10 * 4 * 4


def test_kept_tokens_of_caches_that_keep_all():
    cache = DynamicCache()
    cache.update(states(0, 1, 2), states(0, 1, 2), 0)
    assert kv.kept_tokens(cache) == 3
    assert len(kv.tensors(cache)) == 2


class EveryOther(kv.EvictingLayer):
    """Says that one head holds less than the other."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.keys, self.values, self.is_initialized, self.seen = key_states, value_states, True, 4
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def positions(self) -> torch.Tensor:
        return torch.tensor([[[0, 1, 3], [2, 3, -1]]])


def test_evicting_layer_counts_per_head_and_reports_what_it_saw():
    layer = EveryOther()
    layer.update(states(0, 1, 3), states(0, 1, 3))
    cache = Cache(layers=[layer])
    assert kv.kept_tokens(cache) == 2.5
    assert cache.get_seq_length() == 4
    assert torch.equal(layer.seen_at(), layer.positions())
