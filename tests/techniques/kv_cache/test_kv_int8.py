"""Eight bits per element, and a step per token and head."""

from __future__ import annotations

import torch
from evicted import CONTEXT, IDS, NEW

from bench.families import cache as kv
from bench.models import Source, Sources
from techniques.kv_cache.kv_int8 import KvInt8


def test_a_step_is_the_largest_of_a_token_over_127() -> None:
    technique = KvInt8()
    ready = technique.prepare(Sources(Source("tiny:llama")))
    cache = technique.cache(ready, 2, CONTEXT, NEW)
    plain = kv.preallocated(ready.model.config, CONTEXT)
    with torch.inference_mode():
        kv.read(ready.model, IDS[:, :CONTEXT], cache)
        kv.read(ready.model, IDS[:, :CONTEXT], plain)
    for layer, true in zip(cache.layers, plain.layers, strict=True):
        for steps, given in zip(layer.steps(), (true.keys, true.values), strict=True):
            largest = given.abs().amax(-1, keepdim=True)
            assert steps.shape == given.shape
            assert (steps / (largest / 127) - 1).abs().max() < 0.02
        for restored, given in zip(layer.restored(), (true.keys, true.values), strict=True):
            assert (restored - given).abs().max() < given.abs().max() / 100
