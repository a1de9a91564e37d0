"""The library's QLoRA: peft's adapters on bitsandbytes' layers, put together as the QLoRA repository does."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from bench.errors import Unsupported
from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.checkpointing import checkpointed
from techniques.finetuning.core.optimizers import OptimizerName, optimizer_of
from techniques.finetuning.core.peft_model import PeftPrepared, bits_per_parameter, constants, wrapped


@register
class PeftQlora(Finetuning):
    """`prepare_model_for_kbit_training` and `get_peft_model` on a model loaded with `load_in_4bit`.

    It goes through the same loop as all techniques and computes under autocast as the library's trainer does. On a CPU
    with bfloat16 products bitsandbytes would pack the weights anew when a model is first scored, round their constants
    and let no gradient through any more: this is switched off.
    """

    source: ClassVar[str] = "github.com/artidoro/qlora, qlora.py; peft's quantization guide"
    peer: ClassVar[bool] = True

    learning_rate: float = Field(default=2e-4, gt=0)
    """As of `qlora`."""
    rank: int = Field(default=16, ge=1)
    """Width r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapter's input, during training only."""
    upcast: bool = True
    """Prepare with `prepare_model_for_kbit_training`, which turns all weights that are not of 4 bits to float32."""
    optimizer: OptimizerName = "paged_adamw"
    """The repository's; on a CPU nothing is paged."""
    gradient_checkpointing: bool = False
    """Keep the input of every layer alone and compute its inside again in the backward pass."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        from bitsandbytes.nn import Linear4bit
        from peft import LoraConfig, prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        target = sources.target
        form = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=target.torch_dtype,
        )
        model: Any = target.model(quantization_config=form, device_map={"": target.device})
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
        for name, layer in layers.items():
            layer.support_avx512bf16_for_cpu = False
            if target.device == "cpu" and layer.in_features % 64:
                raise Unsupported(f"layer {name}: bitsandbytes' CPU kernel misreads rows that are not whole blocks")
        if self.upcast:
            model = prepare_model_for_kbit_training(
                model,
                use_gradient_checkpointing=self.gradient_checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False},
            )
        elif self.gradient_checkpointing:
            checkpointed(model)
        for layer in layers.values():
            if layer.bias is not None:  # as its first forward pass would, once the model counts as frozen
                layer.bias.data = layer.bias.data.to(target.torch_dtype)
        model = wrapped(
            model,
            LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                lora_dropout=self.dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        compute_dtype = None if target.torch_dtype == torch.float32 else target.torch_dtype
        prepared = PeftPrepared(model, compute_dtype=compute_dtype)
        prepared.optimizer = self.optimizer_over(prepared.trainable)
        prepared.merge = model.merge_adapter
        prepared.components["quantisation_constants"] = lambda: constants(model)
        prepared.facts["bits_per_parameter"] = bits_per_parameter(model)
        return prepared

    def optimizer_over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(self.optimizer, parameters, self.learning_rate, self.weight_decay)
