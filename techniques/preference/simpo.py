"""SimPO: the mean log-probability per token is the reward itself, so no reference is needed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from bench.families.completions import completion_logprobs
from bench.families.preference import PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.registry import register
from techniques.preference.core import losses
from techniques.preference.core.policy import PolicyTechnique


@register
class Simpo(PolicyTechnique):
    """Raise the chosen completion's mean log-probability per token above the rejected one's by a margin.

    Nothing but the learning rate and the number of steps keeps the policy near its start. TRL has the same loss in its
    CPOTrainer, as `simpo` with cpo_alpha=0.
    """

    source: ClassVar[str] = "Meng et al. 2024, SimPO, eq. 6"

    beta: float = Field(default=2.0, gt=0)
    """Scale of the reward: per token, so larger than DPO's of whole completions."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin that the chosen completion is to win by, in units of the scaled reward."""

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        means = completion_logprobs(prepared.model, batch.texts) / batch.texts.tokens
        chosen, rejected = means.chunk(2)
        return losses.simpo(chosen, rejected, self.beta, self.gamma).mean()
