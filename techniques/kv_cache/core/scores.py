"""What a policy judges tokens by: the states of one layer, and the attention weights that it needs, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

BLOCK = 32
"""Query tokens whose weights exist at once: memory grows with the tokens, not with their square [tokens]."""


@dataclass(frozen=True)
class Seen:
    """One layer's states when a policy decides: behind the whole prompt, or behind one new token."""

    layer: int
    tokens: int
    """Seen so far, the latest included [tokens]."""
    kept: int
    """To be kept by each head, in the mean [tokens]."""
    query: Tensor
    """`(batch, heads, new, head_dim)`: of all tokens of the prompt, or of the new one."""
    keys: Tensor
    """`(batch, kv_heads, held, head_dim)`, with their positions in them; `values` alike."""
    values: Tensor
    positions: Tensor
    """Of the held tokens, in the text: `(batch, kv_heads, held)`; -1 for none, where heads hold different numbers."""
    scaling: float
    marks: Tensor | None = None
    """What the policy noted about the held tokens: `(batch, kv_heads, held)`, float32."""
    state: Any = None
    """What the policy prepared."""

    def recent(self, tokens: int) -> Tensor:
        """Which held tokens are among the latest so many of the text: `(batch, kv_heads, held)`."""
        return self.positions >= self.tokens - tokens

    def weights(self, last: int | None = None) -> Iterator[Tensor]:
        """Attention weights of the last queries, all by default, in blocks of rows.

        A prompt's rows see the tokens up to their own; a single new token sees all that are held.

        Yields:
            `(batch, kv_heads, group, rows, visible)` in float32, over the first `visible` held tokens.
        """
        batch, heads, new, width = self.query.shape
        kv_heads, held = self.keys.shape[1:3]
        grouped = self.query.view(batch, kv_heads, heads // kv_heads, new, width)
        gaps = bool((self.positions[..., 0] < 0).any())  # they come first
        for start in range(0 if last is None else max(new - last, 0), new, BLOCK):
            stop = min(start + BLOCK, new)
            visible = held - new + stop
            # the group's rows side by side: keys are read once, and not repeated
            rows = grouped[..., start:stop, :].reshape(batch, kv_heads, -1, width)
            products = rows @ self.keys[:, :, :visible].transpose(-1, -2)
            scores = products.view(batch, kv_heads, -1, stop - start, visible).float().mul_(self.scaling)
            # what comes after a row lies in the block's own square
            future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=scores.device).triu(1)
            scores[..., start - stop :].masked_fill_(future, -torch.inf)
            if gaps:
                scores.masked_fill_(self.positions[:, :, None, None, :visible] < 0, -torch.inf)
            yield scores.softmax(-1)

    def received(self, last: int | None = None, count: Callable[[Tensor], Tensor] = lambda weights: weights) -> Tensor:
        """Weight that each held token gets from the last queries: `(batch, kv_heads, group, held)`, float32.

        Args:
            last: queries that are asked; all by default.
            count: what is summed over the rows of a block instead of the weights, in the same shape.
        """
        batch, heads = self.query.shape[:2]
        kv_heads, held = self.keys.shape[1:3]
        total = self.keys.new_zeros(batch, kv_heads, heads // kv_heads, held, dtype=torch.float32)
        for weights in self.weights(last):
            total[..., : weights.shape[-1]] += count(weights).sum(-2)
        return total


def pooled(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """Scores `(batch, heads, tokens)`, each replaced by the maximum or mean of its neighbourhood of `kernel` tokens.

    Raises:
        KeyError: `kind` is neither `max` nor `mean`.
    """
    pool = {"max": max_pool1d, "mean": avg_pool1d}[kind]
    made: Tensor = pool(scores, kernel_size=kernel, padding=kernel // 2, stride=1)
    return made
