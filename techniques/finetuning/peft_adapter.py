"""The library's ways to train a few weights: peft's adapters and prompts on the 16-bit model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.peft_model import PeftPrepared, wrapped

Method = Literal["lora", "dora", "rslora", "pissa", "prompt_tuning", "prefix_tuning", "ia3"]


@register
class PeftAdapter(Finetuning):
    """`get_peft_model` with the configuration of one method; all other weights stay frozen in the run's dtype.

    Prompts and prefixes lengthen every sequence by their virtual tokens, whose own logits are left out.
    """

    source: ClassVar[str] = (
        "peft: LoRA (Hu et al. 2021), DoRA (Liu et al. 2024), rsLoRA (Kalajdzievski 2023), PiSSA (Meng et al. 2024), "
        "prompt tuning (Lester et al. 2021), prefix tuning (Li and Liang 2021), IA3 (Liu et al. 2022)"
    )
    peer: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dora": {"method": "dora"},
        "rslora": {"method": "rslora"},
        "pissa": {"method": "pissa"},
        "prompt_tuning": {"method": "prompt_tuning", "learning_rate": 3e-2},
        "prefix_tuning": {"method": "prefix_tuning", "learning_rate": 1e-2},
        "ia3": {"method": "ia3", "learning_rate": 8e-3},
    }

    learning_rate: float = Field(default=2e-4, gt=0)
    """As of `lora`; presets of prompts and of IA3 have that of peft's examples."""
    method: Method = "lora"
    """Low-rank updates (`lora`), with magnitudes apart (`dora`), scaled by alpha / sqrt(r) (`rslora`) or started from
    the weights' leading singular vectors (`pissa`); trained inputs (`prompt_tuning`), keys and values of every layer
    (`prefix_tuning`), or factors of activations (`ia3`)."""
    rank: int = Field(default=16, ge=1)
    """Width r of low-rank updates."""
    alpha: float = Field(default=32.0, gt=0)
    """Low-rank updates are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the input of low-rank updates, during training only."""
    virtual_tokens: int = Field(default=16, ge=1)
    """Length of a prompt or prefix [tokens]."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        model: Any = wrapped(sources.target.model(), self.config())
        prepared = PeftPrepared(model)
        prepared.optimizer = self.optimizer_over(prepared.trainable)
        if not self.own_forward:
            prepared.merge = model.merge_adapter
        return prepared

    def config(self) -> Any:
        """peft's configuration of the method."""
        import peft

        task = {"task_type": "CAUSAL_LM"}
        if self.method == "ia3":
            return peft.IA3Config(**task)
        if self.method == "prompt_tuning":
            return peft.PromptTuningConfig(num_virtual_tokens=self.virtual_tokens, **task)
        if self.method == "prefix_tuning":
            return peft.PrefixTuningConfig(num_virtual_tokens=self.virtual_tokens, **task)
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
            use_dora=self.method == "dora",
            use_rslora=self.method == "rslora",
            # the fast decomposition: 4 rounds of the randomised one
            init_lora_weights="pissa_niter_4" if self.method == "pissa" else True,
            **task,
        )

    @property
    def own_forward(self) -> bool:
        """Virtual tokens lengthen a sequence, and there are no weights that they could be merged with."""
        return self.method in {"prompt_tuning", "prefix_tuning"}

    def logits(self, prepared: TrainedPrepared, ids: Tensor) -> Tensor:
        # a prompt's own positions come first
        return super().logits(prepared, ids)[:, -ids.shape[1] :]
