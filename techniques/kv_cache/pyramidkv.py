"""PyramidKV: SnapKV with more budget in the lower layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from bench.registry import register
from techniques.kv_cache.snapkv import SnapKv


@register
class PyramidKv(SnapKv):
    """SnapKV's scores; the budget falls linearly from the first layer to the last, with the same mean.

    Beside the window, the last layer keeps 1 / `beta` of the mean, the first what is missing to twice the mean.
    Where the first layer would keep more than the context, it keeps all, and the last one more.
    Query-aware, as SnapKV.

    Differs from the paper:
        The layers' budgets are rounded so that they add up to the whole; the published code rounds the step between
        two layers down. For a context shorter than twice the budget it gives all layers the same; here the budget
        still falls, from a first layer that keeps everything. The window of 8 is that of its experiments. kvpress
        rounds each layer's budget by itself, so that their sum may be a few tokens off.
    """

    source: ClassVar[str] = (
        "Cai et al. 2024, PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling"
    )

    window: int = Field(default=8, ge=1)
    """Last queries of the prompt that are asked, and kept [tokens]."""
    beta: float = Field(default=20.0, ge=1.0)
    """How much less than the mean the last layer keeps: the larger, the steeper."""

    def of_layers(self, kept: int, context: int, layers: int) -> list[int]:
        if layers == 1:
            return [kept]
        mean = kept - self.window
        first = min(2 * mean - mean / self.beta, context - self.window)
        last = 2 * mean - first
        shares = [self.window + first + (last - first) * layer / (layers - 1) for layer in range(layers)]
        # the largest remainders are rounded up
        missing = kept * layers - sum(int(share + 1e-9) for share in shares)
        order = sorted(range(layers), key=lambda layer: int(shares[layer] + 1e-9) - shares[layer])
        return [int(share + 1e-9) + (layer in order[:missing]) for layer, share in enumerate(shares)]
