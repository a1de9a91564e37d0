"""KTO: every completion is judged on its own, wanted or not, against how far the policy has moved on average."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.errors import Unsupported
from bench.families.completions import Completions, completion_logprobs
from bench.families.preference import PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.preference.core import losses
from techniques.preference.core.policy import Held, ReferredTechnique, reference_model


@register
class Kto(ReferredTechnique):
    """Raise the utility of wanted completions and lower that of unwanted ones.

    The utility's anchor is the KL divergence from the reference, estimated in every step from completions that stand
    behind the prompt of another row, without a gradient and never below 0; where neighbours of a batch share a prompt,
    as pairs of one opening may, that is one of their own. It costs one more forward pass of policy and reference. Pairs
    are taken apart: each gives one wanted and one unwanted completion, and both weigh the same. Which neighbours pairs
    have in a batch changes the anchor, and so the loss. TRL's KTOTrainer has the same loss over the same rows.
    """

    source: ClassVar[str] = "Ethayarajh et al. 2024, KTO, eq. 8"

    beta: float = Field(default=0.1, gt=0)
    """How fast the utility saturates: the paper's default."""
    reference: Held = "adapters_off"
    """`adapters_off`: no memory of its own; `copy`: a second frozen network. The anchor's texts are known in the step
    only, so nothing can be computed before."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.refuse_unfit(self.reference)
        return self

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.start(sources, self.reference)

    def referred(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> PreferenceBatch:
        """The batch with the log-probability of each completion under the reference, and with the utility's anchor.

        Raises:
            Unsupported: there is no other prompt to put a completion behind.
        """
        if batch.pairs < 2:
            raise Unsupported("its anchor needs completions behind other prompts: set workload.batch_size to 2 or more")
        others = mismatched(batch.texts)
        with reference_model(prepared) as model:
            held_to = completion_logprobs(model, batch.texts)
            held_to_others = completion_logprobs(model, others)
        with torch.no_grad():
            anchor = (completion_logprobs(prepared.model, others) - held_to_others).mean().clamp(min=0)
        return replace(batch, held_to=held_to, anchor=anchor)

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        """Loss `()` of a batch that has been `referred`."""
        assert batch.held_to is not None
        assert batch.anchor is not None
        log_ratio = completion_logprobs(prepared.model, batch.texts) - batch.held_to
        wanted = torch.arange(len(log_ratio), device=log_ratio.device) < batch.pairs
        return losses.kto(log_ratio, wanted, batch.anchor, self.beta).mean()

    @property
    def train_work(self) -> float:
        return super().train_work + 3 * 2 / 6

    def forward_texts(self, batch: PreferenceBatch) -> int:
        # pairs and mismatched texts, each under policy and reference
        return 8 * batch.pairs


def mismatched(texts: Completions) -> Completions:
    """The same prompts, each with the completion of the row before it."""
    width = texts.completion.shape[1]
    ids = torch.cat([texts.ids[:, :-width], texts.ids[:, -width:].roll(1, 0)], -1)
    attention = texts.attention
    if attention is not None:
        attention = torch.cat([attention[:, :-width], attention[:, -width:].roll(1, 0)], -1)
    return Completions(ids, texts.completion.roll(1, 0), attention)
