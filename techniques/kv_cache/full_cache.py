"""The cache that forgets nothing: what every other cache is compared with."""

from __future__ import annotations

from typing import ClassVar

from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families.kv_cache import KVCache, KVCachePrepared
from bench.registry import register


@register
class FullCache(KVCache):
    """All keys and values, in storage that is allocated once; no step copies what is there."""

    source: ClassVar[str] = "the definition of an autoregressive language model"
    baseline: ClassVar[bool] = True

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        return kv.preallocated(prepared.model.config, context + new_tokens)
