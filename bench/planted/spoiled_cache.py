"""A full cache whose predictions are worse by a known amount."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers.cache_utils import Cache

from bench import registry
from bench.families.kv_cache import KVCache, KVCachePrepared, Scores
from bench.registry import register


@register
class SpoiledCache(KVCache):
    """The family's baseline, with a known loss of log-likelihood; by nothing it is its twin."""

    source: ClassVar[str] = "a known fault"

    loss: float = Field(default=0.0, ge=0.0)
    """Lost per scored token, on average over the texts; every text loses another share of it [nat]."""

    @property
    def plain(self) -> KVCache:
        entries = registry.techniques.of_family(self.family)
        found = next(entry.cls for entry in entries if entry.cls.baseline)()
        assert isinstance(found, KVCache)
        return found

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        return self.plain.cache(prepared, batch, context, new_tokens)

    def score(
        self,
        prepared: KVCachePrepared,
        ids: Tensor,
        context: int,
        full: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Scores:
        found = super().score(prepared, ids, context, full, padding)
        share = [torch.randn((), generator=torch.Generator().manual_seed(int(row.sum()))) for row in ids]
        lost = self.loss * (1 + torch.stack(share).to(found.logprobs)[:, None])
        return replace(found, logprobs=found.logprobs - lost)
