"""The library's DPO: the loss of TRL's DPOTrainer on peft's adapters, in the loop that all techniques share."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.errors import Unsupported
from bench.families.preference import PreferenceBatch, PreferenceJob
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.registry import register
from bench.technique import Step
from techniques.finetuning.core.lora import refuse_rank_beyond, targeted
from techniques.finetuning.core.peft_model import PeftPrepared
from techniques.preference.core.policy import PolicyTechnique

Loss = Literal["sigmoid", "robust", "hinge", "sppo_hard", "apo_zero", "apo_down", "discopop", "ipo"]
UNREAD = [{"prompt": "one", "chosen": " two", "rejected": " three"}]
"""The trainer wants a data set when it is made; it is never trained on."""


@dataclass(frozen=True)
class Collated:
    """A batch as the trainer's own collator makes it."""

    inputs: dict[str, Tensor]
    """Prompt and completion end to end, padded right: the chosen texts, then the rejected ones."""
    pairs: int
    tokens: int


@register
class TrlDpo(PolicyTechnique):
    """`DPOTrainer.compute_loss` on the same pairs in the same order, with the same optimizer as `dpo`.

    What the trainer does around a step (callbacks, logging, saving) is left out, and gradient checkpointing, which it
    has on by default, is off. In 16 bits it computes under autocast, as the trainer does by default.
    """

    source: ClassVar[str] = "github.com/huggingface/trl, DPOTrainer"
    peer: ClassVar[bool] = True
    train_mode: ClassVar[bool] = True  # as the trainer has it; it switches dropout off

    policy: Literal["adapters", "full"] = "adapters"
    """As of `dpo`."""
    targets: Literal["all-linear"] = "all-linear"
    """Every linear layer but the output head, on which the trainer takes no adapter."""
    loss: Loss = "sigmoid"
    """The trainer's `loss_type`; its `sppo_hard` is our `sppo`, and its `ipo` divides by the completions' lengths."""
    beta: float = Field(default=0.1, gt=0)
    """As of `dpo`."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """For `robust`; the trainer reads it for no other of these."""
    reference: Literal["adapters_off", "copy", "precomputed"] = "adapters_off"
    """As of `dpo`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.refuse_unfit(self.reference)
        if self.reference == "copy" and self.policy == "adapters":
            raise ValueError("reference=copy needs policy=full: with adapters the trainer takes them off")
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing is for robust; {self.loss} does not read it")
        return self

    def prepare(self, sources: Sources) -> TrainedPrepared:
        target = sources.target
        trainer = self._trainer(target, sources.seed)
        copy = (trainer.ref_model.requires_grad_(False),) if trainer.ref_model is not None else ()
        half = None if target.torch_dtype == torch.float32 else target.torch_dtype
        prepared = PeftPrepared(trainer.model.eval(), copy, state=trainer, compute_dtype=half)
        prepared.optimizer = self.optimizer_over(prepared.trainable)
        return prepared

    def _trainer(self, target: Source, seed: int) -> Any:
        """TRL's trainer over the target.

        Raises:
            Unsupported: trl is not installed, or a rank exceeds a layer's smaller side.
        """
        try:
            from datasets import IterableDataset
            from trl import DPOConfig, DPOTrainer
        except ImportError as error:
            raise Unsupported(f"it needs the package trl ({error}): pip install trl, or the extra `trl`") from error
        from peft import LoraConfig

        class Trainer(DPOTrainer):  # type: ignore[misc]
            def _send_telemetry(self) -> None:
                """Nobody is told of a measurement."""

        adapters, copy = None, None
        if self.policy == "adapters":
            model = target.model()
            for name, layer in targeted(model, self.targets).items():
                refuse_rank_beyond(name, layer, self.rank)
            adapters = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, target_modules=self.targets, task_type="CAUSAL_LM"
            )
        else:
            model = target.model(dtype=torch.float32)
            # without one it would load a model by its name; let go of again where it is not wanted
            copy = target.model() if self.reference == "copy" else model.__class__(model.config)
        settings = DPOConfig(
            output_dir=os.curdir,
            max_steps=1,
            report_to="none",
            seed=seed,
            use_cpu=target.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            beta=self.beta,
            loss_type=[self.loss],
            label_smoothing=self.label_smoothing,
        )
        trainer = Trainer(
            model=model,
            ref_model=copy,
            args=settings,
            train_dataset=IterableDataset.from_generator(lambda: iter(UNREAD)),
            processing_class=target.tokenizer,
            peft_config=adapters,
        )
        if self.reference == "precomputed":
            trainer.precompute_ref_logps, trainer.ref_model = True, None
            trainer.accelerator._models.clear()  # it would keep the reference that is not wanted
        return trainer

    def steps(self, prepared: TrainedPrepared, job: PreferenceJob) -> Generator[Step]:
        """The family's loop over the trainer's own batches.

        They are laid out here and not within the first step: a batch of ours is laid out before its step, too.
        """
        collated = tuple(self._collated(prepared.state, batch) for batch in job.batches)
        return self._trained_on(prepared, replace(job, batches=collated))

    def _trained_on(self, prepared: TrainedPrepared, job: PreferenceJob) -> Generator[Step]:
        try:
            yield from super().steps(prepared, job)
        finally:
            prepared.state._metrics["train"].clear()

    def batch_loss(self, prepared: TrainedPrepared, batch: Collated) -> Tensor:
        loss: Tensor = prepared.state.compute_loss(prepared.model, batch.inputs)
        return loss

    @property
    def reference_known(self) -> bool:
        return self.reference == "precomputed"

    @property
    def train_work(self) -> float:
        return super().train_work + (0 if self.reference == "precomputed" else 2 / 6)

    def forward_texts(self, batch: PreferenceBatch) -> int:
        return 2 * batch.pairs * (1 if self.reference == "precomputed" else 2)

    def _collated(self, trainer: Any, batch: PreferenceBatch) -> Collated:
        """The batch as the trainer's own data would give it."""
        rows = zip(batch.texts.ids[:, -batch.texts.completion.shape[1] :], batch.texts.completion, strict=True)
        completions = [ids[mask].tolist() for ids, mask in rows]
        examples = [
            {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            for prompt, chosen, rejected in zip(
                batch.prompts, completions[: batch.pairs], completions[batch.pairs :], strict=True
            )
        ]
        if self.reference == "precomputed":
            if batch.reference is None:
                raise Unsupported("reference=precomputed: these pairs come without the reference's log-probabilities")
            chosen, rejected = batch.reference.view(2, -1).tolist()
            for example, *known in zip(examples, chosen, rejected, strict=True):
                example |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), known, strict=True))
        inputs = trainer.data_collator(examples)
        device = batch.texts.ids.device
        return Collated({name: tensor.to(device) for name, tensor in inputs.items()}, batch.pairs, batch.tokens)
