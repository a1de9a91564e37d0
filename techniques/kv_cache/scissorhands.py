"""Scissorhands: tokens that were rarely worth more than the average are dropped, half of the cache at a time."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.families.kv_cache import QUERY_AWARE
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class Scissorhands(Eviction):
    """Drop the tokens to which most of the latest queries gave less than the average weight.

    The average is 1 / tokens attended to. The `recent` latest tokens stay in any case. When the cache is full, the
    share `drop` of it goes at once. Each head keeps its own. Query-aware: the prompt's last queries count.

    Differs from the paper:
        While decoding, the history reaches back to the last eviction at most. Equal counts: the later token stays.
        With grouped queries the mean weight of the group is counted.
    """

    source: ClassVar[str] = "Liu et al. 2023, Scissorhands, algorithms 1 and 2"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AWARE,)
    watches: ClassVar[bool] = True

    history: int = Field(default=400, ge=1)
    """Latest queries that are counted, the paper's w [tokens]."""
    recent: int = Field(default=10, ge=0)
    """Latest tokens that are never dropped, the paper's r [tokens]."""
    drop: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of a full cache that goes, the paper's m / B; `every`, where given, says it in tokens."""

    def least(self, kept: int) -> int:
        return self.recent + 1

    def period(self, size: int) -> int | None:
        return self.every or max(1, round(self.drop * size))

    def first_marks(self, seen: Seen) -> Tensor:
        low = torch.zeros_like(seen.positions, dtype=torch.float32)
        for weights in seen.weights(self.history):
            visible = weights.shape[-1]
            first = visible - weights.shape[-2] + 1  # tokens attended to by the block's first row
            attended = torch.arange(first, visible + 1, device=weights.device)
            mean = weights.mean(2)  # (batch, kv_heads, rows, visible)
            there = torch.arange(visible, device=weights.device) < attended[:, None]
            low[..., :visible] += ((mean < 1 / attended[:, None]) & there).sum(-2)
        return low

    def mark(self, marks: Tensor, weights: Tensor, left: int) -> None:
        if left < self.history:
            marks += weights.mean(-2) < 1 / weights.shape[-1]

    def forget(self, marks: Tensor) -> None:
        marks.zero_()

    def importance(self, seen: Seen) -> Tensor:
        assert seen.marks is not None
        later = seen.positions / (seen.tokens + 1)  # below 1: decides between equal counts
        return (later - seen.marks).masked_fill(seen.recent(self.recent), torch.inf)
