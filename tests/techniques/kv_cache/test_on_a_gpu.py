"""Every cache that shrinks, on a CUDA device: what it attends to, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, NEW

from bench import registry
from bench.families import cache as kv
from bench.families import kv_oracle, kv_rounding
from bench.models import Source, Sources
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.kv_int8 import KvInt8
from techniques.kv_cache.streaming_llm import StreamingLlm

registry.load_plugins()
SMALL: dict[str, Any] = {"window": 6, "recent": 4, "history": 5, "ratio": 0.4}
APART = {"full_cache", "hf_dynamic", "fastgen", "h2o", "kivi", "kv_int8", "streaming_llm"}
EVICTING: list[Any] = [
    entry.cls(**{name: value for name, value in SMALL.items() if name in entry.cls.model_fields})
    for entry in registry.techniques.values()
    if entry.cls.family == "kv_cache" and not entry.is_preset and entry.name not in APART
]
EVICTING += [
    registry.techniques["h2o"].cls(ratio=0.4),
    FastGen(recovery=0.7),
    FastGen(ratio=0.5, every=4),
    StreamingLlm(window=6, positions="absolute"),
]
LOSSY = [Kivi(group=8, residual=16), Kivi(bits=4, group=8, residual=16), KvInt8()]
pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("technique", EVICTING, ids=repr)
def test_mask_oracle(technique: Any, name: str, dtype: str) -> None:
    ready = technique.prepare(Sources(Source(name, dtype=dtype, device=DEVICE)))
    gate = kv_oracle.gate(ready.model, technique.cache(ready, 2, CONTEXT, NEW), IDS.to(DEVICE), CONTEXT)
    assert gate.passed, gate.detail
    assert "nothing was evicted" not in gate.detail


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("technique", LOSSY, ids=repr)
def test_elements_are_within_half_a_step(technique: Any, dtype: str) -> None:
    ready = technique.prepare(Sources(Source("tiny:llama", dtype=dtype, device=DEVICE)))
    gate = kv_rounding.gate(ready.model, technique.cache(ready, 2, CONTEXT, NEW), IDS.to(DEVICE), CONTEXT)
    assert gate.passed, gate.detail


@pytest.mark.parametrize("technique", EVICTING, ids=repr)
def test_the_tokens_kept_are_those_of_a_cpu(technique: Any) -> None:
    held, sizes = [], []
    for device in ("cpu", DEVICE):
        ready = technique.prepare(Sources(Source("tiny:llama", device=device)))
        cache = technique.cache(ready, 2, CONTEXT, NEW)
        with torch.inference_mode():
            kv.read(ready.model, IDS[:, :CONTEXT].to(device), cache)
        layers: Any = cache.layers
        held.append([[[set(head) for head in row] for row in layer.positions().tolist()] for layer in layers])
        sizes.append(kv.held_bytes(cache))
        assert {tensor.device.type for layer in layers for tensor in layer.held()} == {device}
    assert held[0] == held[1]
    assert sizes[0] == sizes[1]
