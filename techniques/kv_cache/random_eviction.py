"""Random eviction: the control that every policy has to beat."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.families.kv_cache import QUERY_AGNOSTIC
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class RandomEviction(Eviction):
    """Keep tokens drawn at random, each head its own.

    Every set of so many tokens is equally likely. The rows of a batch lose the same tokens, so that a row does not
    depend on its neighbours. Query-agnostic.
    """

    source: ClassVar[str] = "the control: uniform sampling without replacement"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of the draws."""

    def importance(self, seen: Seen) -> Tensor:
        batch, kv_heads, held = seen.positions.shape
        # one stream per layer and eviction, whatever ran before; a generator takes 32 bits of its seed
        name = f"{self.seed} {seen.layer} {seen.tokens}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        draws = torch.rand(kv_heads, held, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return draws.to(seen.keys.device).expand(batch, -1, -1)
