"""A world small enough to know its answer: a few prompts, a few completions each, a reward, a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""Log-ratios of the chosen and of the rejected completion -> loss, all of one shape."""


@dataclass(frozen=True)
class World:
    """Policies over completions are tables of log-probabilities, `(prompts, completions)`."""

    reward: Tensor
    """`(prompts, completions)`."""
    reference: Tensor
    """Log-probabilities `(prompts, completions)`."""

    @classmethod
    def random(cls, prompts: int, completions: int, seed: int) -> World:
        """Rewards and the reference's logits from N(0, 1), float64."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, prompts, completions, generator=generator, dtype=torch.float64)
        return cls(drawn[0], drawn[1].log_softmax(-1))

    def optimum(self, beta: float) -> Tensor:
        """The policy that no other beats in `value`: pi_ref exp(r / beta) / Z (Rafailov et al. 2023, eq. 4)."""
        return (self.reference + self.reward / beta).log_softmax(-1)

    def value(self, policy: Tensor, beta: float) -> Tensor:
        """Expected reward less beta times the KL divergence from the reference, `(prompts,)` (eq. 3)."""
        return (policy.exp() * (self.reward - beta * (policy - self.reference))).sum(-1)

    def preferred(self) -> Tensor:
        """P(y over y') of Bradley and Terry, `(prompts, completions, completions)` (eq. 1)."""
        return torch.sigmoid(self.reward[:, :, None] - self.reward[:, None, :])

    def expected_loss(self, policy: Tensor, loss: PairLoss) -> Tensor:
        """Mean `()` over all pairs of two different completions and their labels, every pair as often as any other."""
        ratio = policy - self.reference
        chosen, rejected = torch.broadcast_tensors(ratio[:, :, None], ratio[:, None, :])
        weighted = self.preferred() * loss(chosen, rejected)  # (prompts, chosen, rejected)
        apart = ~torch.eye(self.reward.shape[1], dtype=torch.bool)
        return weighted[:, apart].mean() * 2

    def fit(self, loss: PairLoss, steps: int = 200) -> Tensor:
        """The table that makes `expected_loss` least, found from the reference on by L-BFGS."""
        logits = self.reference.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [logits], max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = self.expected_loss(logits.log_softmax(-1), loss)
            value.backward()
            return value

        optimizer.step(closure)
        return logits.detach().log_softmax(-1)
