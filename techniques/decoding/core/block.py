"""Block verification (Sun et al. 2025, algorithm 2): how much of a draft may stay, judged by its joint probability.

A pure function of the two distributions and the drafted tokens; drawing is a separate step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from techniques.decoding.core.acceptance import ratio


class BlockAcceptance(NamedTuple):
    """What one verified draft of g tokens allows."""

    keep: Tensor
    """Probability to keep the first i tokens, asked for each i on its own; the longest that is granted counts, and
    none if none is. i from 1, `(g,)`."""
    residual: Tensor
    """What is drawn from behind the i tokens kept, `norm(max(0, b_i p_i - q_i))`; row g is the bonus token's
    distribution behind a draft kept in full. `(g + 1, vocabulary)`"""


def block_wise(p: Tensor, q: Tensor, drafted: Tensor) -> BlockAcceptance:
    """The rule for a block.

    `b_i = min(1, b_{i-1} p(x_i) / q(x_i))`, from `b_0 = 1`, is the probability that at least i tokens stay (the
    paper's p_i). To make it so, with `r_i = sum(max(0, b_i p - q))` over the next token, i tokens are granted with
    probability `r_i / (r_i + 1 - b_i)`, and the whole draft with `b_g` (equation 5).

    Args:
        p: the target's distributions at the drafted positions and behind them, `(g + 1, vocabulary)`.
        q: the draft's distributions, `(g, vocabulary)`.
        drafted: ids drawn from q, `(g,)`.
    """
    index = drafted[:, None]
    shares = [p.new_ones(())]
    for one in ratio(p[:-1].gather(-1, index), q.gather(-1, index))[:, 0]:
        shares.append((shares[-1] * one).clamp_max(1))
    b = torch.stack(shares)  # (g + 1,)
    excess = (b[:-1, None] * p[:-1] - q).clamp_min(0)
    r = excess.sum(-1)
    # no excess: i tokens are never granted as the longest, and p stands in for a distribution never drawn from
    residual = torch.where(r[:, None] > 0, excess / r[:, None], p[:-1])
    keep = torch.where(r > 0, r / (r + (1 - b[:-1])), 0.0)  # in this order it is 1 at most, and exact where b is 1
    return BlockAcceptance(torch.cat([keep[1:], b[-1:]]), torch.cat([residual, p[-1:]]))


def draw_block(acceptance: BlockAcceptance, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """Keep the longest beginning that is granted, then draw one more token.

    Returns:
        The emitted ids `(kept + 1,)`, and how many drafted ones were kept.
    """
    uniform = torch.rand(len(drafted), generator=generator, device=drafted.device, dtype=acceptance.keep.dtype)
    granted = (uniform < acceptance.keep).nonzero()[:, 0]
    kept = int(granted[-1]) + 1 if len(granted) else 0
    extra = torch.multinomial(acceptance.residual[kept], 1, generator=generator)
    return torch.cat([drafted[:kept], extra]), kept
