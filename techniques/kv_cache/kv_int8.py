"""Eight-bit keys and values: the plain way to a smaller cache."""

from __future__ import annotations

from typing import ClassVar

from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families.kv_cache import QUERY_AGNOSTIC, KVCachePrepared
from bench.models import Sources
from bench.registry import register
from techniques.kv_cache.core.attending import check_layers, link
from techniques.kv_cache.core.eight_bits import PerTokenInt8
from techniques.kv_cache.core.quantized import QuantizedLayer
from techniques.kv_cache.core.rows import RowByRow


@register
class KvInt8(RowByRow):
    """Round each token's keys and values to 255 values around 0, up to the largest of its head.

    Every head of every token has a step in 16 bits. All tokens stay, none is exact; storage of the
    values is rounded up to 32 tokens. Query-agnostic.
    """

    source: ClassVar[str] = "the definition of symmetric 8-bit rounding, per token and head"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)

    def prepare(self, sources: Sources) -> KVCachePrepared:
        prepared = super().prepare(sources)
        link(prepared.model)
        return prepared

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        config = prepared.model.config
        capacity = context + new_tokens
        kv.check_length(config, capacity)
        stores = [[PerTokenInt8(capacity, values) for values in (False, True)] for _ in range(check_layers(config))]
        return Cache(layers=[QuantizedLayer(keys, values) for keys, values in stores])
