"""The library's cache beside ours: the same tokens, by storage that is new for every token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, NEW
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families import kv_oracle
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.hf_dynamic import HfDynamic

JOB = KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW)


@pytest.mark.parametrize("name", MODELS)
def test_what_it_writes_and_holds_is_the_full_caches(name: str) -> None:
    made = []
    for technique in (FullCache(), HfDynamic()):
        prepared = technique.prepare(Sources(Source(name)))
        made.append(technique.generate(prepared, JOB))
    ours, theirs = made
    assert theirs.outputs == ours.outputs
    assert theirs.kept_tokens == ours.kept_tokens == CONTEXT + NEW - 1
    # ours has a slot for the last token, which nothing reads
    assert theirs.bytes == ours.bytes * (CONTEXT + NEW - 1) // (CONTEXT + NEW)


def test_it_attends_as_the_library_does() -> None:
    prepared: Any = HfDynamic().prepare(Sources(Source("tiny:llama")))
    assert prepared.model.config._attn_implementation == "sdpa"
    cache = HfDynamic().cache(prepared, 2, CONTEXT, NEW)
    gate = kv_oracle.gate(prepared.model, cache, IDS, CONTEXT)
    assert gate.passed, gate.detail


def test_every_token_copies_everything() -> None:
    prepared = HfDynamic().prepare(Sources(Source("tiny:llama")))
    before: list[Any] = []
    for number, _ in enumerate(HfDynamic().steps(prepared, JOB)):
        tensors = kv.tensors(prepared.cache)
        assert all(t.shape[-2] == CONTEXT + number for t in tensors)
        assert not {t.data_ptr() for t in tensors} & {t.data_ptr() for t in before}
        before = tensors  # held, so that no storage is used again


def test_a_sliding_window_holds_no_more_than_that() -> None:
    config = AutoConfig.for_model(
        "mistral", hidden_size=64, num_hidden_layers=2, vocab_size=264, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    sources: Any = SimpleNamespace(target=SimpleNamespace(config=config, model=lambda: model))
    technique = HfDynamic()
    made = technique.generate(technique.prepare(sources), JOB)
    assert made.kept_tokens == 15  # the next token is the 16th
    with torch.inference_mode():
        full = model(input_ids=torch.cat([IDS[:, :CONTEXT], torch.tensor(made.outputs)], 1)).logits
    assert full[:, CONTEXT - 1 : -1].argmax(-1).tolist() == made.outputs


def test_context_beyond_the_models_is_unsupported() -> None:
    prepared = HfDynamic().prepare(Sources(Source("tiny:llama")))
    with pytest.raises(Unsupported, match="2050 tokens do not fit"):
        HfDynamic().cache(prepared, 1, 2000, 50)
