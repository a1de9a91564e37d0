"""A cache that lets tokens go: choose and store those of a prompt, evict, and attend to what each head still holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.families import cache as kv
from techniques.kv_cache.core.ragged import RaggedLayer

BATCH, HEADS, KV_HEADS, WIDTH, TOKENS = 1, 9, 3, 64, 1024


class Held(RaggedLayer):
    """Storage alone, without a policy."""

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        raise AssertionError("nothing is chosen here")


class Module:
    """What the library's attention asks of a layer."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True
    training = False


def states() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, 1, WIDTH, generator=generator)
    keys, values = torch.randn(2, BATCH, KV_HEADS, TOKENS, WIDTH, generator=generator)
    return query, keys, values


def held(counts: list[int]) -> Held:
    """The first so many tokens per head."""
    _, keys, values = states()
    layer = Held()
    layer.lazy_initialization(keys, values)
    kept = [[torch.arange(count) for count in counts]]
    layer.store(keys, values, kept, torch.full((BATCH, KV_HEADS), 8), {})
    layer.seen = TOKENS
    return layer


ATTENDING = {
    "ragged": [512, 192, 64],
    "even": [256] * KV_HEADS,
    "sdpa": [256] * KV_HEADS,
    "sdpa over all 3,072": [TOKENS] * KV_HEADS,
}


@pytest.mark.benchmark(group="one token attends to 768 held, 3 heads of 64")
@pytest.mark.parametrize("by", list(ATTENDING))
@torch.inference_mode()
def test_attend(benchmark: BenchmarkFixture, by: str) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    benchmark.extra_info["peer"] = by == "sdpa"
    query, keys, values = states()
    counts, module, scaling = ATTENDING[by], Module(), WIDTH**-0.5
    if by.startswith("sdpa"):
        dense = keys[:, :, : counts[0]].contiguous(), values[:, :, : counts[0]].contiguous()
        found = benchmark(lambda: sdpa_attention_forward(module, query, *dense, None, scaling=scaling)[0])
    else:
        layer = held(counts)
        found = benchmark(lambda: layer.attend(module, query, scaling))
    for head, count in enumerate(counts):
        weights = (query[0, 3 * head : 3 * head + 3, 0] @ keys[0, head, :count].T * scaling).softmax(-1)
        torch.testing.assert_close(found[0, 0, 3 * head : 3 * head + 3], weights @ values[0, head, :count])


@pytest.mark.benchmark(group="let go of half of 3,072 held, 3 heads of 64")
@pytest.mark.parametrize("by", ["in place, ragged", "in place, even", "DynamicCache, gathered"])
@torch.inference_mode()
def test_evict(benchmark: BenchmarkFixture, by: str) -> None:
    from transformers import DynamicCache

    benchmark.extra_info["peer"] = by.startswith("DynamicCache")
    _, keys, values = states()
    draws = torch.rand(BATCH, KV_HEADS, TOKENS, generator=torch.Generator().manual_seed(2))
    stay = draws.argsort(-1) < TOKENS // 2
    if by.endswith("ragged"):
        stay[0, 0], stay[0, 1] = torch.arange(TOKENS) < 256, torch.arange(TOKENS) >= 256
    if by.startswith("DynamicCache"):

        def filled() -> tuple[tuple[Any, ...], dict[str, Any]]:
            cache = DynamicCache()
            cache.update(keys.clone(), values.clone(), 0)
            return (cache,), {}

        def evict(cache: Any) -> None:
            index = stay.nonzero()[:, 2].view(BATCH, KV_HEADS, -1, 1).expand(-1, -1, -1, WIDTH)
            layer = cache.layers[0]
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
            made.append([layer.keys[0, head] for head in range(KV_HEADS)])
    else:

        def filled() -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (held([TOKENS] * KV_HEADS),), {}

        def evict(cache: Any) -> None:
            cache.keep(stay)
            made.append([cache.keys[cache.segment(0, head)] for head in range(KV_HEADS)])

    made: list[list[Tensor]] = []
    benchmark.pedantic(evict, setup=filled, rounds=30)
    for head in range(KV_HEADS):
        kept = keys[0, head, stay[0, head]]
        assert len(made[-1][head]) == len(kept)
        assert torch.equal(made[-1][head].sort(0).values, kept.sort(0).values)


@pytest.mark.benchmark(group="append one token to 1,024 held, 3 heads of 64")
@pytest.mark.parametrize("by", ["full cache, in place", "ragged, in place", "DynamicCache, copied"])
@torch.inference_mode()
def test_append(benchmark: BenchmarkFixture, by: str) -> None:
    from transformers.cache_utils import DynamicLayer

    benchmark.extra_info["peer"] = by.startswith("DynamicCache")
    _, keys, values = states()
    key, value = keys[:, :, 9:10], values[:, :, 9:10]

    def filled() -> tuple[tuple[Any, ...], dict[str, Any]]:
        if by.startswith("ragged"):
            return (held([TOKENS, TOKENS - 8, TOKENS - 9]),), {}
        layer = kv.PreallocatedLayer(TOKENS + 8) if by.startswith("full") else DynamicLayer()
        layer.update(keys, values)
        return (layer,), {}

    def append(layer: Any) -> None:
        layer.update(key, value)
        made.append(layer)

    made: list[Any] = []
    benchmark.pedantic(append, setup=filled, rounds=30)
    layer = made[-1]
    if by.startswith("ragged"):
        assert all(torch.equal(layer.keys[layer.segment(0, head)][-1], key[0, head, 0]) for head in range(KV_HEADS))
    else:
        assert layer.get_seq_length() == TOKENS + 1
        assert torch.equal(layer.values[:, :, TOKENS], value[:, :, 0])
