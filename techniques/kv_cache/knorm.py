"""Knorm: keys of small norm are the ones that get attention."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.families.kv_cache import QUERY_AGNOSTIC
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class Knorm(Eviction):
    """Keep the tokens whose keys have the smallest L2 norm, each head its own.

    Query-agnostic: no attention is computed. Where a model normalises its keys, only the learned scale of that
    normalisation tells them apart.

    Differs from the paper:
        Every layer is compressed alike; for language modelling the paper leaves its first two layers whole.
    """

    source: ClassVar[str] = "Devoto et al. 2024, A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)

    def importance(self, seen: Seen) -> Tensor:
        return -seen.keys.float().norm(dim=-1)
