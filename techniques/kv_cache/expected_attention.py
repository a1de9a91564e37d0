"""Expected attention: what queries to come, taken as normally distributed, would attend to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.families.kv_cache import QUERY_AGNOSTIC, KVCachePrepared
from bench.models import Sources
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.rotation import rotation_if_any
from techniques.kv_cache.core.scores import Seen

BLOCK = 256
"""Queries that are turned back at once [tokens]."""


@register
class ExpectedAttention(Eviction):
    """Keep the tokens with the largest expected attention times the norm of their values, and the first `sinks`.

    Queries before their rotation are taken as normally distributed, with mean and covariance of the prompt's. Turned
    by the mean rotation of the next `future` positions they give each key its expected weight
    `exp(k m / sqrt(d) + k C k / 2 d)`, normalised over the tokens. Each head keeps its own; a head's weights are the
    mean over its group. Query-agnostic: no single query counts.

    Differs from the paper:
        Statistics are those of the queries, turned back, instead of the hidden states before the projection: the
        same for models without normalised queries, and right for those with. Models without rotary positions have
        nothing to turn. The prompt is compressed once, and what follows stays; with `every`, the same is done again by
        the last `window` queries of what was read and written until then, which are held for it.
    """

    source: ClassVar[str] = "Devoto et al. 2025, Expected Attention (arXiv 2510.00636)"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)

    future: int = Field(default=512, ge=1)
    """Positions ahead over which the rotation is averaged [tokens]."""
    sinks: int = Field(default=4, ge=0, le=1024)
    """First tokens that stay in any case, and whose queries do not count [tokens]."""
    window: int = Field(default=64, ge=2)
    """With `every`: latest queries that later evictions go by [tokens]."""

    @property
    def asks(self) -> int:
        return 0 if self.every is None else self.window

    def least(self, kept: int) -> int:
        return self.sinks + 1

    def prepare(self, sources: Sources) -> KVCachePrepared:
        prepared = super().prepare(sources)
        prepared.state = rotation_if_any(prepared.model)
        return prepared

    def importance(self, seen: Seen) -> Tensor:
        mean, covariance = self.statistics(seen)  # (batch, heads, d), (batch, heads, d, d)
        if seen.state is not None:
            ahead = torch.arange(seen.tokens, seen.tokens + self.future, device=mean.device)
            turn = seen.state.matrix(ahead, mean.shape[-1])
            mean, covariance = mean @ turn.T, turn @ covariance @ turn.T
        keys = seen.keys[:, :, self.sinks :].float()
        kv_heads = keys.shape[1]
        total = torch.zeros(keys.shape[:3], device=keys.device)
        group = mean.shape[1] // kv_heads
        for member in range(group):
            m, c = mean[:, member::group, :, None], covariance[:, member::group]
            logits = (keys @ m)[..., 0] * seen.scaling + ((keys @ c) * keys).sum(-1) * (seen.scaling**2 / 2)
            total += logits.softmax(-1) / group
        total *= seen.values[:, :, self.sinks :].float().norm(dim=-1)
        return torch.nn.functional.pad(total, (self.sinks, 0), value=torch.inf)

    def statistics(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Mean `(batch, heads, head_dim)` and covariance `(batch, heads, head_dim, head_dim)` of the queries."""
        count = seen.query.shape[2] - self._skipped(seen)
        mean = sum(block.sum(2) for block in self._queries(seen)) / count
        assert isinstance(mean, Tensor)
        centred = (block - mean[:, :, None] for block in self._queries(seen))
        return mean, sum(part.transpose(-1, -2) @ part for part in centred) / count

    def _skipped(self, seen: Seen) -> int:
        """Queries of sinks."""
        return max(self.sinks - (seen.tokens - seen.query.shape[2]), 0)

    def _queries(self, seen: Seen) -> Iterator[Tensor]:
        """Queries as they are before their rotation, `(batch, heads, block, head_dim)` in float32."""
        first = seen.tokens - seen.query.shape[2]
        for start in range(self._skipped(seen), seen.query.shape[2], BLOCK):
            block = seen.query[:, :, start : start + BLOCK].float()
            if seen.state is not None:
                places = torch.arange(start, start + block.shape[2], device=block.device) + first
                block = seen.state.each(block, -places)
            yield block
