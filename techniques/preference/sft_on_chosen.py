"""Finetuning on the chosen completions: what learning from pairs is compared with."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.families.completions import completion_logprobs
from bench.families.preference import PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.registry import register
from techniques.preference.core.policy import PolicyTechnique


@register
class SftOnChosen(PolicyTechnique):
    """Negative log-likelihood of the chosen completion, mean per token; the rejected one is not looked at.

    It is the paper's baseline Preferred-FT, on the same policy as the other techniques.
    """

    source: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, section 6 (Preferred-FT)"
    baseline: ClassVar[bool] = True

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        return -completion_logprobs(prepared.model, batch.chosen).sum() / batch.chosen_tokens

    @property
    def train_work(self) -> float:
        return super().train_work / 2

    def forward_texts(self, batch: PreferenceBatch) -> int:
        return batch.pairs

    def tokens(self, batch: PreferenceBatch) -> int:
        return batch.chosen_tokens
