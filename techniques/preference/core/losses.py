"""Losses over pairs of completions: pure functions of log-probabilities.

Those held to a reference see two log-ratios a pair, h = log pi(y|x) - log pi_ref(y|x), summed over the tokens of the
chosen and of the rejected completion. Before the first step both are 0. All are `(pairs,)` [nat], and so is the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """DPO's loss, -log sigmoid(beta (h_w - h_l)) (Rafailov et al. 2023, eq. 7); ln 2 at the start.

    Args:
        chosen: log-ratio h_w of each chosen completion, `(pairs,)` [nat].
        rejected: h_l of each rejected one, `(pairs,)`.
        beta: weight of the KL divergence from the reference in the objective whose optimum is sought.
    """
    return -functional.logsigmoid(beta * (chosen - rejected))


def cdpo(chosen: Tensor, rejected: Tensor, beta: float, flipped: float) -> Tensor:
    """Cross-entropy against labels that are wrong with probability `flipped` (Mitchell 2023); ln 2 at the start.

    Its slope is zero where sigmoid(beta (h_w - h_l)) = 1 - flipped. TRL has none: its `sigmoid` does not read
    label_smoothing.
    """
    return (1 - flipped) * sigmoid(chosen, rejected, beta) + flipped * sigmoid(rejected, chosen, beta)


def robust(chosen: Tensor, rejected: Tensor, beta: float, flipped: float) -> Tensor:
    """DPO's loss on the true labels, estimated without bias from noisy ones (Chowdhury et al. 2024); ln 2 at the start.

    Over labels that are wrong with probability `flipped` < 1/2 its mean is that of `sigmoid` over right ones. It has
    no lower bound.
    """
    right, wrong = sigmoid(chosen, rejected, beta), sigmoid(rejected, chosen, beta)
    return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Squared distance of the margin to 1 / (2 beta) (Azar et al. 2023, eq. 17); 1 / (4 beta^2) at the start.

    Sums over tokens, as the paper has it; TRL divides each log-ratio by its completion's length first.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta (h_w - h_l)), SLiC's loss on DPO's margin (Liu et al. 2023, RSO); 1 at the start."""
    return torch.relu(1 - beta * (chosen - rejected))


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Squared distances of h_w to 1 / (2 beta) and of h_l to -1 / (2 beta); 1 / (2 beta^2) at the start.

    Wu et al. 2024, SPPO, eq. 4.7 with a chosen completion that wins for certain; there eta is 1 / beta. Each side has
    a goal of its own: of one completion on both sides it pulls the ratio back to 0, with a gradient of 4 h.
    """
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta h_w) + sigmoid(beta h_l): chosen up and rejected down; 1 at the start.

    D'Oosterlinck et al. 2024, APO, eq. 7, and a constant 1, as in TRL. One completion on both sides has no gradient.
    """
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """sigmoid(beta h_w) + 1 - sigmoid(beta (h_w - h_l)): both down, rejected further; 1 at the start.

    For chosen completions that are worse than what the model writes: one completion on both sides goes down too, with
    the gradient beta sigmoid'(beta h). D'Oosterlinck et al. 2024, APO, eq. 8, and a constant 1, as in TRL.
    """
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def discopop(chosen: Tensor, rejected: Tensor, beta: float, temperature: float = 0.05) -> Tensor:
    """Logistic below a margin of 0, exponential above, mixed in between (Lu et al. 2024, DiscoPOP, eq. 5).

    (ln 2 + 1) / 2 at the start. The mixture bends: a little above 0 more margin is a greater loss.
    """
    margin = beta * (chosen - rejected)
    above = torch.sigmoid(margin / temperature)
    # exp of the negative part is of no weight, but would overflow
    exponential = torch.exp(-margin.clamp(min=-60.0))
    return (1 - above) * -functional.logsigmoid(margin) + above * exponential


def kto(log_ratio: Tensor, wanted: Tensor, anchor: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(+-beta (h - anchor)): the utility of one completion (Ethayarajh et al. 2024, eq. 8).

    Args:
        log_ratio: h of each completion, `(rows,)` [nat].
        wanted: whether it is desirable, `(rows,)`, bool.
        anchor: z_0, an estimate of the KL divergence from the reference, `()`, without gradient [nat].

    Returns:
        `(rows,)`; 1/2 at the start. Desirable and undesirable weigh the same, 1.
    """
    sign = torch.where(wanted, 1.0, -1.0)
    return 1 - torch.sigmoid(beta * sign * (log_ratio - anchor))


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid of the log odds ratio, of probabilities per token (Hong et al. 2024, ORPO, eq. 7).

    Args:
        chosen: mean log-probability per token of each chosen completion, `(pairs,)`, below 0 [nat].
        rejected: of each rejected one, `(pairs,)`.
    """
    return -functional.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (m_w - m_l) - gamma), without a reference (Meng et al. 2024, SimPO, eq. 6).

    Args:
        chosen: mean log-probability m_w per token of each chosen completion, `(pairs,)` [nat].
        rejected: m_l of each rejected one, `(pairs,)`.
        gamma: how much better the chosen one has to be.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - gamma)


def unlikelihood(logprobs: Tensor) -> Tensor:
    """-log(1 - p) of each token that is not wanted, in the shape of `logprobs` (Welleck et al. 2019)."""
    return -_log_one_minus(logprobs)


def _log_odds(logprob: Tensor) -> Tensor:
    return logprob - _log_one_minus(logprob)


def _log_one_minus(logprob: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0; a probability of 1 counts as a rounding below."""
    x = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    # either form loses digits where the other is exact
    return torch.where(x > -0.693, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
