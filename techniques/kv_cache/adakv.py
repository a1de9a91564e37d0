"""Ada-KV: SnapKV with more budget for the heads whose attention is spread."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.registry import register
from techniques.kv_cache.snapkv import SnapKv


@register
class AdaKv(SnapKv):
    """SnapKV's scores, compared over all heads of a layer: a head keeps as many tokens as are among the layer's best.

    A head's budget is `(1 - safeguard)` times its tokens among the best of the layer, plus `safeguard` times the
    mean, rounded so that the layer keeps what it is given. The window is kept by every head, beside that. Storage is
    ragged: what a head does not keep is freed. With `every` the shares are drawn anew each time, which copies the
    layer; what a head holds less than its share goes to the others' best. Query-aware, as SnapKV.

    Differs from the paper:
        Budgets are per key/value head, where the paper has one per query head. The published code mixes as here, but
        rounds each head by itself, so that a layer keeps a few tokens more or less; its option to weigh heads by how
        concentrated they are is left out. kvpress protects each head's best tokens up to the safeguard instead of
        mixing, and frees nothing.
    """

    source: ClassVar[str] = "Feng et al. 2024, Ada-KV, algorithms 1 and 2"
    apart: ClassVar[bool] = True

    safeguard: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the budget that is split evenly, `floor_alpha` of the published code; 1: SnapKV."""

    def of_heads(self, importance: Tensor, kept: int) -> Tensor:
        batch, kv_heads, tokens = importance.shape
        mean = kept - self.window
        scored = importance[..., : tokens - self.window].flatten(1)
        best = scored.topk(mean * kv_heads, -1).indices // (tokens - self.window)  # heads, (batch, mean * kv_heads)
        counts = torch.zeros(batch, kv_heads, dtype=torch.int64, device=best.device)
        counts = counts.scatter_add(-1, best, torch.ones_like(best)).cpu()
        shares = (1 - self.safeguard) * counts.double() + self.safeguard * mean
        whole = (shares + 1e-9).floor()
        missing = (mean * kv_heads - whole.sum(-1, keepdim=True)).long()
        # the largest remainders are rounded up
        order = (shares - whole).sort(dim=-1, descending=True, stable=True).indices
        return (whole + (order.argsort(-1) < missing)).long() + self.window
