"""Finetuning on the chosen completions: what learning from pairs is compared with."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.families.preference import Preference, PreferenceBatch, completion_logprobs
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.lora import Targets, attach


@register
class SftOnChosen(Preference):
    """Negative log-likelihood of the chosen completion, mean per token; the rejected one is not looked at.

    It is the paper's baseline Preferred-FT, on the same low-rank adapters as the other techniques.
    """

    source: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, section 6 (Preferred-FT)"
    baseline: ClassVar[bool] = True

    learning_rate: float = Field(default=2e-4, gt=0)
    """That of finetuning with LoRA, in `lora`."""
    rank: int = Field(default=16, ge=1)
    """Width of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: Targets = "all-linear"
    """`all-linear`, or last parts of the names of layers, as ["q_proj", "v_proj"]."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        generator = torch.Generator().manual_seed(sources.seed)
        return self.trained(attach(sources.target.model(), self.rank, self.alpha, 0.0, self.targets, generator))

    def loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        return -completion_logprobs(prepared.model, batch.chosen).sum() / batch.chosen_tokens

    def tokens(self, batch: PreferenceBatch) -> int:
        return batch.chosen_tokens
