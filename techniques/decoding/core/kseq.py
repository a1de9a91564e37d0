"""k-SEQ (Sun et al. 2023, SpecTr, k-sequential selection): one of several independent candidates, or a residual.

A pure function of the two distributions and the candidates; drawing is a separate step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from techniques.decoding.core.acceptance import ratio

HALVINGS = 24
"""Steps of the bisection for gamma, which leave it uncertain by (k - 1) / 2^24: what float32 can tell apart. The law
is exact with any gamma above the solution; one too great by so much costs as little acceptance."""


class SequentialAcceptance(NamedTuple):
    """What k candidates for one position allow."""

    accept: Tensor
    """Probability to accept candidate i, given that all before it were rejected, `(k,)`."""
    residual: Tensor
    """What is drawn from where all were rejected, `(vocabulary,)`."""


def kseq(p: Tensor, q: Tensor, candidates: Tensor) -> SequentialAcceptance:
    """Try the candidates in order, each with `min(1, p / (gamma q))`.

    Each is accepted with probability `beta = sum(min(q, p / gamma))`, whatever became of those before it, so a token
    comes out as a candidate as often as `min(q, p / gamma)` times the candidates tried; the residual is what that
    leaves of p. For k = 1 gamma is 1, and this is the token-wise rule.

    Args:
        p: the target's distribution, `(vocabulary,)`.
        q: what the candidates were drawn from, independently, `(vocabulary,)`.
        candidates: ids, `(k,)`.
    """
    k = len(candidates)
    gamma = factor(p, q, k)
    accept = ratio(p[candidates], gamma * q[candidates]).clamp_max(1)
    overlap = torch.minimum(q, p / gamma)
    left = (p - overlap * tried(float(overlap.sum()), k)).clamp_min(0)
    mass = left.sum()
    # nothing left: some candidate is always accepted, and p stands in for a distribution never drawn from
    return SequentialAcceptance(accept, torch.where(mass > 0, left / mass, p))


def factor(p: Tensor, q: Tensor, k: int) -> float:
    """The least gamma in [1, k] that leaves no token a negative residual, to a part in 2^24 and never below it.

    It solves `1 - (1 - beta)^k = gamma beta`, here divided by beta.
    """
    low, high = 1.0, float(k)
    for _ in range(HALVINGS if k > 1 else 0):
        middle = (low + high) / 2
        beta = float(torch.minimum(q * middle, p).sum()) / middle
        if tried(beta, k) > middle:
            low = middle
        else:
            high = middle
    return high


def tried(beta: float, k: int) -> float:
    """Candidates looked at, in the mean: `(1 - (1 - beta)^k) / beta`, as a sum that loses no digits near 0."""
    return sum((1 - beta) ** before for before in range(k))


def draw_sequential(
    acceptance: SequentialAcceptance, candidates: Tensor, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """The first candidate that is accepted, else a token of the residual.

    Returns:
        The id `(1,)`, and whether it is a candidate that was accepted.
    """
    uniform = torch.rand(len(candidates), generator=generator, device=candidates.device, dtype=acceptance.accept.dtype)
    accepted = (uniform < acceptance.accept).nonzero()[:, 0]
    if len(accepted):
        return candidates[accepted[:1]], True
    return torch.multinomial(acceptance.residual, 1, generator=generator), False
