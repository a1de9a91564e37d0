"""What is made large: the share of the draft's tokens that the target would accept, sum of min(p, q)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How two laws over the next token agree, per position, `(positions,)` each."""

    accepted: Tensor
    """Sum of min(p, q): the probability that a token drawn from the draft is accepted."""
    same_best: Tensor
    """Whether both hold the same token likeliest: what is accepted in greedy decoding."""
    gradient: Tensor
    """Of the loss, by the draft's logits, `(positions, vocabulary)`."""


@torch.no_grad()
def agreement(target: Tensor, draft: Tensor, kl_share: float = 0.0) -> Agreement:
    """Compare logits `(positions, vocabulary)`.

    The loss is `kl_share * KL(p || q) - (1 - kl_share) * log(sum of min(p, q))`, summed over positions. Its gradient
    is written out, since autograd would keep ten arrays of this size.
    """
    p, q = target.float().softmax(-1), draft.float().softmax(-1)
    below = q < p
    accepted = torch.minimum(p, q).sum(-1)
    same = p.argmax(-1) == q.argmax(-1)
    # d accepted / d z_j = q_j (below_j - sum over below of q)
    kept = q * below
    toward = kept.sub_(q * kept.sum(-1, keepdim=True)).mul_((1 - kl_share) / accepted.clamp_min(1e-6)[:, None])
    gradient = q.sub_(p).mul_(kl_share).sub_(toward)
    return Agreement(accepted, same, gradient)
