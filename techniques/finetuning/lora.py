"""LoRA: low-rank adapters are trained beside the frozen 16-bit model."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.checkpointing import checkpointed
from techniques.finetuning.core.lora import AdapterDtype, Targets, attach, merge
from techniques.finetuning.core.optimizers import OptimizerName, optimizer_of


@register
class Lora(Finetuning):
    """Train (alpha / r) B A beside every linear layer W, which stays frozen in the run's dtype.

    Differs from the paper: all linear layers but the output head get an adapter, as QLoRA found necessary to
    match full finetuning, where the paper adapts the attention's query and value projections; A starts
    Kaiming-uniform as in the paper's code, where its text says Gaussian.
    """

    source: ClassVar[str] = "Hu et al. 2021, LoRA, section 4.1; Dettmers et al. 2023, QLoRA, section 4 (targets)"

    learning_rate: float = Field(default=2e-4, gt=0)
    """That of QLoRA for models up to 13B (Dettmers et al. 2023)."""
    rank: int = Field(default=16, ge=1)
    """Width r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapter's input, during training only."""
    targets: Targets = "all-linear"
    """`all-linear`, or last parts of the names of layers, as ["q_proj", "v_proj"]."""
    adapter_dtype: AdapterDtype = "float32"
    """`float32`: updates of 1e-4 would vanish in the rounding of bfloat16; `model`: the run's dtype."""
    optimizer: OptimizerName = "adamw"
    """Moments in 32 bits, in 8 (`adamw_8bit`), or either of them `paged_`."""
    gradient_checkpointing: bool = False
    """Keep the input of every layer alone and compute its inside again in the backward pass."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.adapted(sources.target.model(), sources.seed)

    def adapted(self, model: nn.Module, seed: int) -> TrainedPrepared:
        """The model with its adapters, ready for the loop.

        Raises:
            Unsupported: the rank exceeds a layer's smaller side, or a target is not the name of a linear layer.
        """
        generator = torch.Generator().manual_seed(seed)
        attach(model, self.rank, self.alpha, self.dropout, self.targets, generator, self.adapter_dtype)
        prepared = self.trained(checkpointed(model) if self.gradient_checkpointing else model)
        prepared.merge = functools.partial(merge, model)
        return prepared

    def optimizer_over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(self.optimizer, parameters, self.learning_rate, self.weight_decay)
