"""LoRA: low-rank adapters are trained beside the frozen 16-bit model."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.lora import AdapterDtype, Targets, attach


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

    def prepare(self, sources: Sources) -> TrainedPrepared:
        generator = torch.Generator().manual_seed(sources.seed)
        model = attach(
            sources.target.model(),
            self.rank,
            self.alpha,
            self.dropout,
            self.targets,
            generator,
            self.adapter_dtype,
        )
        return self.trained(model)
