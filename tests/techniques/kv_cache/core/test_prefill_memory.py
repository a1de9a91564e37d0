"""Reading a prompt takes no more memory than with the full cache: no map of all pairs, one dense layer at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.byte_tokenizer import byte_tokenizer
from bench.families import cache as kv
from bench.probes.tensors import StorageWatch
from techniques.kv_cache.adakv import AdaKv
from techniques.kv_cache.expected_attention import ExpectedAttention
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.h2o import H2O
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.scissorhands import Scissorhands

TOKENS = 2048
# the widths of SmolLM2-135M, four of its layers
CONFIG = AutoConfig.for_model(
    "llama", hidden_size=576, num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3, vocab_size=264,
    intermediate_size=1536, max_position_embeddings=8192, pad_token_id=0,
)  # fmt: skip


class Peak(StorageWatch):
    highest = 0

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        made = super().__torch_dispatch__(*args, **kwargs)
        self.highest = max(self.highest, self.total)
        return made


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa", dtype=torch.bfloat16).eval()


def peak(technique: Any, model: Any) -> int:
    """Most bytes that lived while a prompt was read, the weights left out [B]."""
    target = SimpleNamespace(config=CONFIG, model=lambda: model, tokenizer=byte_tokenizer())
    prepared = technique.prepare(SimpleNamespace(target=target))
    cache = technique.cache(prepared, 1, TOKENS, 32)
    ids = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    watch = Peak("cpu", SimpleNamespace(peak=0, rose=lambda alive: False))
    watch.leave_out([*model.parameters(), *model.buffers()])
    with torch.inference_mode(), watch:
        kv.read(model, ids, cache)
    model.set_attn_implementation("sdpa")
    # what is left is what the cache says that it holds, and a few positions
    held = kv.held_bytes(cache)
    assert 0 < held <= watch.total < held + 10_000
    return watch.highest


@pytest.fixture(scope="module")
def full(model: Any) -> int:
    most = peak(FullCache(), model)
    # a map of all pairs would be 9 heads * 2048 ** 2 * 4 bytes, 151 MB
    assert 20e6 < most < 60e6
    return most


@pytest.mark.parametrize(
    "technique", [H2O(), Scissorhands(), AdaKv(), ExpectedAttention(), FastGen(recovery=0.6), Kivi()]
)
def test_reading_a_prompt(technique: Any, model: Any, full: int) -> None:
    assert peak(technique, model) < 1.1 * full
