"""Unlikelihood: finetuning on the chosen completions, and away from every token of the rejected ones."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from bench.families.completions import token_logprobs
from bench.families.preference import PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.registry import register
from techniques.preference.core import losses
from techniques.preference.core.policy import PolicyTechnique


@register
class Unlikelihood(PolicyTechnique):
    """-log p of every chosen token, and -log(1 - p) of every rejected one, each the mean per token.

    DPO's paper has it as a baseline, with a weight on the second part, and reports that it degenerates. It subtracts
    the rejected completion's log p there; the form here is that of the method's own paper, which has a lower bound.

    A pair of equal texts is not without effect: it is imitated, and pushed away from by `weight` of it.
    """

    source: ClassVar[str] = "Welleck et al. 2019, Neural Text Generation with Unlikelihood Training (token level)"

    weight: float = Field(default=0.5, ge=0, le=1)
    """Of the rejected tokens; 0 leaves finetuning on the chosen completions."""

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        tokens = token_logprobs(prepared.model, batch.texts)  # (2 * pairs, completion)
        chosen, rejected = tokens.chunk(2)
        unwanted = batch.texts.completion.chunk(2)[1]
        away = losses.unlikelihood(rejected).masked_fill(~unwanted, 0.0)
        return -chosen.sum() / batch.chosen_tokens + self.weight * away.sum() / batch.rejected_tokens
