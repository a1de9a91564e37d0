"""What the preference techniques train: the same policy for all, so that they differ in their loss alone."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.families.completions import Completions, completion_logits
from bench.families.preference import Preference, PreferenceBatch
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.technique import Phase
from techniques.finetuning.core.blockwise import Format
from techniques.finetuning.core.building import quantised_model
from techniques.finetuning.core.lora import Targets, adapters_off, attach
from techniques.finetuning.core.quantised_linear import Linear4bit

Held = Literal["adapters_off", "copy"]
"""Ways to hold a reference that can score any text."""


class PolicyTechnique(Preference):
    """Base of the techniques that train a policy by gradient: low-rank adapters, or all weights."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """An adapter's, the same for all techniques but `ppo`; all weights together want about a tenth of it."""
    policy: Literal["adapters", "4bit", "full"] = "adapters"
    """`adapters`: low-rank ones beside frozen weights; `4bit`: beside weights in NF4, doubly quantised, as QLoRA has
    them; `full`: all weights, held in float32, which compute in the run's dtype."""
    rank: int = Field(default=16, ge=1)
    """Width of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: Targets = "all-linear"
    """`all-linear`, or last parts of the names of layers, as ["q_proj", "v_proj"]."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.start(sources)

    def start(self, sources: Sources, reference: str = "") -> TrainedPrepared:
        """The policy before its first step, and what it is held to: where `reference` is "copy" a frozen copy of it,
        where it is "model" the run's reference.

        Raises:
            Unsupported: the run names no reference, or one with another vocabulary.
        """
        target = sources.target
        helpers: tuple[nn.Module, ...] = ()
        if reference == "copy":
            helpers = (self._frozen(target),)
        elif reference == "model":
            helpers = (self._frozen(sources.helper("reference")),)
        if self.policy != "full":
            generator = torch.Generator().manual_seed(sources.seed)
            model = attach(self._frozen(target), self.rank, self.alpha, 0.0, self.targets, generator)
            return self.trained(model, helpers)
        if target.torch_dtype == torch.float32:
            return self.trained(target.model(), helpers)
        return self.trained(target.model(dtype=torch.float32), helpers, compute_dtype=target.torch_dtype)

    def _frozen(self, target: Source) -> nn.Module:
        """What the policy starts from, without gradients: of 4-bit layers for a policy of 4 bits, and as a full policy
        holds its weights, in float32, since it would not be its own start else."""
        if self.policy == "full":
            return target.model(dtype=torch.float32).requires_grad_(False)
        if self.policy != "4bit":
            return target.model().requires_grad_(False)
        form = Format("nf4", 64, True)
        return quantised_model(target, lambda weight, bias: Linear4bit(weight, bias, None, form, "bitsandbytes"))

    @property
    def own_reference(self) -> bool:
        return self.policy == "4bit"

    @torch.no_grad()
    def reference_logits(self, prepared: TrainedPrepared, texts: Completions) -> Tensor:
        with reference_model(prepared) as model:
            return completion_logits(model, texts)

    @property
    def train_work(self) -> float:
        """By operations: 2 a weight and token forward, 4 backward, and 2 of these where weights are frozen."""
        return 1.0 if self.policy == "full" else 4 / 6

    def counts(self, batch: PreferenceBatch) -> Mapping[str, int]:
        """Texts that go forward through a network, and tokens that are generated, in a step."""
        return {"forward_texts": self.forward_texts(batch), "generated_tokens": 0}

    def forward_texts(self, batch: PreferenceBatch) -> int:
        """Texts that go forward in a step: by default both of every pair, once."""
        return 2 * batch.pairs

    def refuse_unfit(self, reference: str) -> None:
        """Nothing, where the reference can be that of the policy.

        Raises:
            ValueError: there are no adapters to take off, or the reference would be of other bits.
        """
        if reference == "adapters_off" and self.policy == "full":
            raise ValueError(
                "reference=adapters_off needs policy=adapters or policy=4bit; a full policy needs a copy of its start"
            )
        if reference == "model" and self.policy == "4bit":
            raise ValueError("reference=model is held in 16 bits; a policy=4bit needs adapters_off or copy")


class ReferredTechnique(PolicyTechnique):
    """Base of those whose loss asks what the reference makes of a step's texts: a phase of its own."""

    @abstractmethod
    def referred(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> PreferenceBatch:
        """The batch with `held_to`: the log-probability of each completion under the technique's reference."""

    def update(
        self, prepared: TrainedPrepared, trained: list[nn.Parameter], batch: PreferenceBatch, rate: float, phase: Phase
    ) -> Tensor:
        # before the policy's pass: what it needs is let go of before the policy's activations are kept
        with phase("reference"), prepared.precision():
            batch = self.referred(prepared, batch)
        return super().update(prepared, trained, batch, rate, phase)


@contextlib.contextmanager
def reference_model(prepared: TrainedPrepared) -> Iterator[torch.nn.Module]:
    """The network that scores as the policy did at its start, without gradients: a copy, or the adapters off."""
    with torch.no_grad():
        if prepared.helpers:
            yield prepared.helpers[0]
            return
        with adapters_off(prepared.model):
            yield prepared.model
