"""DPO: pairs of completions train the policy directly, without a reward model and without sampling."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.families.preference import Preference, PreferenceBatch, completion_logprobs
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.lora import Targets, adapters_off, attach
from techniques.preference.core import losses


@register
class Dpo(Preference):
    """Raise the chosen completion's log-ratio to the reference above the rejected one's.

    Differs from the paper: low-rank adapters are trained instead of all weights, so the reference is the same
    network with its adapters off; AdamW instead of RMSprop; the learning rate is an adapter's.
    """

    source: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, eq. 7"

    learning_rate: float = Field(default=2e-4, gt=0)
    """The baseline's, so that the two differ in their loss alone; lower it where training takes hundreds of steps."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; the paper's default."""
    reference: Literal["adapters_off", "copy"] = "adapters_off"
    """`adapters_off`: no memory of its own; `copy`: a second frozen network, as the paper's code has it."""
    rank: int = Field(default=16, ge=1)
    """Width of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: Targets = "all-linear"
    """`all-linear`, or last parts of the names of layers, as ["q_proj", "v_proj"]."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        generator = torch.Generator().manual_seed(sources.seed)
        model = attach(sources.target.model(), self.rank, self.alpha, 0.0, self.targets, generator)
        if self.reference == "adapters_off":
            return self.trained(model)
        return self.trained(model, helpers=(sources.target.model().requires_grad_(False),))

    def loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        # the reference first: its activations are gone before the policy's are kept
        reference = self._reference(prepared, batch)
        reference_chosen, reference_rejected = reference.chunk(2)
        chosen, rejected = completion_logprobs(prepared.model, batch.texts).chunk(2)
        return losses.sigmoid(chosen, rejected, reference_chosen, reference_rejected, self.beta).mean()

    @torch.no_grad()
    def _reference(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        """Log-probability of each completion under the reference, `(2 * pairs,)`."""
        if batch.reference is not None:
            return batch.reference
        if self.reference == "copy":
            return completion_logprobs(prepared.helpers[0], batch.texts)
        with adapters_off(prepared.model):
            return completion_logprobs(prepared.model, batch.texts)
