"""Profiling heads behind a prompt: which tokens each could do without, by the attention they received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from techniques.kv_cache.core.scores import Seen

Part = Literal["special", "punctuation", "frequent", "local"]


@dataclass(frozen=True)
class Received:
    """Attention that the tokens of a prompt received, per query head: `(batch, kv_heads, group, tokens)`, float32."""

    total: Tensor
    """From all later queries, as a mean over all queries of the prompt."""
    near: Tensor
    """Of that, from queries fewer than `window` tokens behind."""


def received(seen: Seen, window: int) -> Received:
    """One pass over all queries of a prompt, in blocks of rows."""
    batch, heads, tokens, _ = seen.query.shape
    kv_heads = seen.keys.shape[1]
    total = seen.keys.new_zeros(batch, kv_heads, heads // kv_heads, tokens, dtype=torch.float32)
    near = torch.zeros_like(total)
    for weights in seen.weights():
        rows, visible = weights.shape[-2:]
        own = torch.arange(visible - rows, visible, device=weights.device)[:, None]
        first = max(visible - rows - window + 1, 0)  # what is older lies within no row's window
        inside = torch.arange(first, visible, device=weights.device) > own - window
        total[..., :visible] += weights.sum(-2) / tokens
        near[..., first:visible] += (weights[..., first:] * inside).sum(-2) / tokens
    return Received(total, near)


def share_of(share: float, tokens: int) -> int:
    """A share of the tokens, one at least [tokens]."""
    return max(1, round(share * tokens))


def members(part: Part, kinds: Tensor, marks: Tensor, positions: Tensor, tokens: int, share: float) -> Tensor:
    """Which held tokens belong to a part of a policy: `(batch, kv_heads, held)`.

    Args:
        kinds: of the tokens, 1 special, 2 punctuation, `(batch, kv_heads, held)`.
        marks: attention received so far, minus infinity where nothing is held.
        positions: in the text, -1 where nothing is held.
        tokens: seen so far [tokens].
        share: of them that are frequent, or local.
    """
    if part == "special":
        return kinds == 1
    if part == "punctuation":
        return kinds == 2
    count = share_of(share, tokens)
    if part == "local":
        return positions >= tokens - count
    best = marks.topk(min(count, marks.shape[-1]), -1).indices
    return torch.zeros_like(kinds, dtype=torch.bool).scatter_(-1, best, True) & (positions >= 0)
