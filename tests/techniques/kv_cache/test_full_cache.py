"""The baseline is the library's own greedy decoding, over storage that is allocated once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.full_cache import FullCache

CONTEXTS = torch.arange(2 * 50).reshape(2, 50) * 11 % 256


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:qwen3", "tiny:gpt2"])
def test_tokens_are_those_of_generate(name: str):
    technique = FullCache()
    prepared = technique.prepare(Sources(Source(name)))
    made = technique.generate(prepared, KVCacheJob(contexts=CONTEXTS, max_new_tokens=12))
    model: Any = Source(name).model()
    expected = model.generate(
        CONTEXTS,
        attention_mask=torch.ones_like(CONTEXTS),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert made.outputs == expected[:, 50:].tolist()


def test_storage_is_allocated_once_and_holds_everything():
    technique = FullCache()
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    pointers = set()
    for _ in technique.steps(prepared, KVCacheJob(contexts=CONTEXTS, max_new_tokens=6)):
        pointers.add(tuple(t.data_ptr() for t in kv.tensors(prepared.cache)))
        # 3 layers, 2 rows, 2 heads of 16 dimensions, keys and values, float32
        assert kv.held_bytes(prepared.cache) == 3 * 2 * 2 * 16 * 2 * 4 * 56
    assert len(pointers) == 1


def test_context_beyond_the_models_is_unsupported():
    technique = FullCache()
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    with pytest.raises(Unsupported, match="2050 tokens do not fit"):
        technique.cache(prepared, 1, 2000, 50)
