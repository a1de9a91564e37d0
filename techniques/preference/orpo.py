"""ORPO: finetuning on the chosen completions and a preference in one loss, without a reference."""

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
class Orpo(PolicyTechnique):
    """Likelihood of the chosen completions, and their odds against the rejected ones', both per token.

    Differs from TRL: the likelihood is that of the completion, as in the paper; there it is that of prompt and
    completion.
    """

    source: ClassVar[str] = "Hong et al. 2024, ORPO, eq. 6 and 7"

    weight: float = Field(default=0.1, ge=0)
    """Of the odds ratio's loss (lambda); 0 leaves finetuning on the chosen completions."""

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        sums = completion_logprobs(prepared.model, batch.texts)
        chosen, rejected = (sums / batch.texts.tokens).chunk(2)
        likelihood = -sums[: batch.pairs].sum() / batch.chosen_tokens
        return likelihood + self.weight * losses.odds_ratio(chosen, rejected).mean()
