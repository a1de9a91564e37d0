"""Modified rejection sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2).

A pure function of the two distributions and the drafted tokens; drawing is a separate step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Acceptance(NamedTuple):
    """What one verified draft of g tokens allows."""

    accept: Tensor
    """Probability to accept token i, given that all before it were: `min(1, p_i(x_i) / q_i(x_i))`, `(g,)`."""
    residual: Tensor
    """What is drawn from where token i is the first rejected, `norm(max(0, p_i - q_i))`; row g is the bonus
    token's distribution after a draft accepted in full, `p_g`. `(g + 1, vocabulary)`"""


def token_wise(p: Tensor, q: Tensor, drafted: Tensor) -> Acceptance:
    """The token-wise rule.

    Args:
        p: the target's distributions at the drafted positions and behind them, `(g + 1, vocabulary)`.
        q: the draft's distributions, `(g, vocabulary)`.
        drafted: ids drawn from q, `(g,)`.
    """
    index = drafted[:, None]
    accept = ratio(p[:-1].gather(-1, index), q.gather(-1, index))[:, 0].clamp_max(1)
    excess = (p[:-1] - q).clamp_min(0)
    mass = excess.sum(-1, keepdim=True)
    # no excess: p equals q and the token cannot be rejected; p stands in for a distribution never drawn from
    residual = torch.where(mass > 0, excess / mass, p[:-1])
    return Acceptance(accept, torch.cat([residual, p[-1:]]))


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """p / q of drafted ids; 0 where q gives an id no chance: it was not drawn from q, and is never accepted."""
    return torch.where(q > 0, p / q, 0.0)


def draw(acceptance: Acceptance, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """Accept from the left until the first rejection, then draw one more token.

    Returns:
        The emitted ids `(accepted + 1,)`, and how many drafted ones were accepted.
    """
    uniform = torch.rand(len(drafted), generator=generator, device=drafted.device, dtype=acceptance.accept.dtype)
    accepted = int((uniform < acceptance.accept).long().cumprod(0).sum())
    extra = torch.multinomial(acceptance.residual[accepted], 1, generator=generator)
    return torch.cat([drafted[:accepted], extra]), accepted
