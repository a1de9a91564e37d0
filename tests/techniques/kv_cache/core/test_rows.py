"""Rows of different lengths in one batch: each is evicted as if it were alone, and padding is nowhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, NEW
from torch import Tensor
from transformers.cache_utils import Cache

from bench import registry
from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families import kv_oracle
from bench.families.kv_cache import KVCache, KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.h2o import H2O
from techniques.kv_cache.hf_dynamic import HfDynamic
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.kv_int8 import KvInt8
from techniques.kv_cache.streaming_llm import StreamingLlm

registry.load_plugins()
PADDING = [0, 23, 9]
_draw = torch.Generator().manual_seed(3)
ROWS = torch.cat([IDS, torch.randperm(256, generator=_draw)[None, : CONTEXT + NEW]])
"""Contexts with noise for padding: whatever stands there must not matter."""
SMALL: dict[str, Any] = {"window": 6, "recent": 4, "history": 5}
POLICIES = [entry.cls for entry in registry.techniques.values() if issubclass(entry.cls, Eviction)]
TECHNIQUES: list[Any] = [
    *(
        policy(ratio=0.4, **{k: v for k, v in SMALL.items() if k in policy.model_fields and policy is not H2O})
        for policy in POLICIES
    ),
    H2O(budget=20),  # the shorter row evicts less of itself
    FastGen(recovery=0.7),
    FastGen(ratio=0.5),
    FastGen(recovery=0.7, sinks=2),
    StreamingLlm(window=6, positions="absolute"),
]
REINDEXED = StreamingLlm(ratio=0.4)
"""For models whose keys are turned."""
LOSSY: list[Any] = [Kivi(group=4, residual=8), KvInt8()]
"""They hold every token."""


def ready(technique: Any, name: str = "tiny:llama") -> Any:
    return technique.prepare(Sources(Source(name)))


@torch.inference_mode()
def read(model: Any, cache: Any, ids: Tensor, context: int, padding: Tensor | None = None) -> Tensor:
    """Logits `(batch, NEW, vocabulary)` from the context's last token on, but for the last."""
    parts = [kv.read(model, ids[:, :context], cache, padding=padding)]
    parts += [kv.read(model, ids[:, at : at + 1], cache, padding=padding) for at in range(context, context + NEW - 1)]
    return torch.cat(parts, 1)


def held(cache: Any, row: int) -> list[list[set[int]]]:
    """The tokens that a row holds: layer, head."""
    return [[set(head) - {-1} for head in layer.positions()[row].tolist()] for layer in cache.layers]


@pytest.mark.parametrize(
    ("technique", "name"),
    [*itertools.product([*TECHNIQUES, *LOSSY], MODELS), (REINDEXED, "tiny:llama")],
    ids=repr,
)
def test_a_padded_row_is_evicted_as_if_it_were_alone(technique: Any, name: str) -> None:
    prepared = ready(technique, name)
    cache = technique.padded_cache(prepared, CONTEXT, PADDING, NEW)
    logits = read(prepared.model, cache, ROWS, CONTEXT, torch.tensor(PADDING))
    bytes_alone = 0
    for row, padding in enumerate(PADDING):
        alone = technique.cache(prepared, 1, CONTEXT - padding, NEW)
        expected = read(prepared.model, alone, ROWS[row : row + 1, padding:], CONTEXT - padding)
        assert held(cache, row) == held(alone, 0)
        assert (logits[row] - expected[0]).abs().max() < 1e-4
        bytes_alone += kv.held_bytes(alone)
    assert kv.held_bytes(cache) == bytes_alone, "padding is held"


@pytest.mark.parametrize(
    ("technique", "name"), [*itertools.product(TECHNIQUES, MODELS), (REINDEXED, "tiny:llama")], ids=repr
)
def test_mask_oracle_of_a_padded_batch(technique: Any, name: str) -> None:
    prepared = ready(technique, name)
    observed = kv_oracle.Observed(technique.padded_cache(prepared, CONTEXT, PADDING, NEW))
    made = read(prepared.model, observed, ROWS, CONTEXT, torch.tensor(PADDING))
    turned = kv_oracle._frequencies(prepared.model)
    for row, padding in enumerate(PADDING):
        seen = {
            layer: [kv_oracle.Visible(one.held[row : row + 1], one.seen_at[row : row + 1]) for one in steps]
            for layer, steps in observed.visible.items()
        }
        ids = ROWS[row : row + 1, padding : CONTEXT + NEW - 1]
        expected = kv_oracle.read_once(prepared.model, ids, kv_oracle.Reference(CONTEXT - padding, seen, turned))
        whole = kv_oracle.read_once(prepared.model, ids, kv_oracle.Reference(CONTEXT - padding))
        assert (made[row] - expected[0]).abs().max() < 1e-4
        assert (expected - whole).abs().max() > 1e-2, "nothing was hidden"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("technique", [FullCache(), HfDynamic(), TECHNIQUES[0]], ids=repr)
def test_a_padded_job_writes_what_its_rows_write_alone(technique: Any, name: str) -> None:
    prepared = ready(technique, name)
    contexts, questions = ROWS[:, :CONTEXT], ROWS[:, CONTEXT : CONTEXT + 3]
    padding = torch.tensor(PADDING)
    job = KVCacheJob(contexts=contexts, questions=questions, max_new_tokens=NEW - 3, padding=padding)
    made = technique.generate(prepared, job)
    for row, skipped in enumerate(PADDING):
        one = slice(row, row + 1)
        alone = KVCacheJob(contexts=contexts[one, skipped:], questions=questions[one], max_new_tokens=NEW - 3)
        assert technique.generate(prepared, alone).outputs == [made.outputs[row]]


def test_a_cache_that_knows_one_length_only_says_so() -> None:
    class OneLength(KVCache):
        def cache(self, *args: Any) -> Cache:
            return KvInt8().cache(*args)

    with pytest.raises(Unsupported, match=r"takes contexts of one length only, here some are 23 tokens shorter"):
        OneLength().padded_cache(ready(OneLength()), CONTEXT, PADDING, NEW)
