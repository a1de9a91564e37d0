"""The library's own cache: nothing is let go, and every token copies all keys and values."""

from __future__ import annotations

from typing import ClassVar

from transformers import DynamicCache
from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families.kv_cache import KVCache, KVCachePrepared
from bench.models import Sources
from bench.registry import register


@register
class HfDynamic(KVCache):
    """`DynamicCache` and the library's own attention, as `generate()` uses them; only the loop is ours.

    A layer joins each new token to its keys and values by `torch.cat`: new storage of the whole size, and both for a
    moment. Layers with a sliding window hold no more than that. Beside it stands `full_cache`, over storage that is
    allocated once. Query-agnostic.
    """

    source: ClassVar[str] = "transformers, cache_utils.py, DynamicCache"
    peer: ClassVar[bool] = True

    def prepare(self, sources: Sources) -> KVCachePrepared:
        return KVCachePrepared(sources.target.model())

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        kv.check_length(prepared.model.config, context + new_tokens)
        return DynamicCache(config=prepared.model.config)
