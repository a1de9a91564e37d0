"""Losses over pairs of completions: pure functions of summed log-probabilities."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def sigmoid(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """DPO's loss, -log sigmoid(beta h) (Rafailov et al. 2023, eq. 7).

    Args:
        policy_chosen: log-probability of each chosen completion under the policy, `(pairs,)` [nat].
        policy_rejected: of each rejected one, `(pairs,)`.
        reference_chosen: the same under the reference, `(pairs,)`.
        reference_rejected: `(pairs,)`.
        beta: weight of the KL divergence from the reference in the objective whose optimum is sought.

    Returns:
        `(pairs,)`.
    """
    h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -functional.logsigmoid(beta * h)
