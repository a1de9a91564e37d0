"""Full finetuning: every weight is trained, what adapters and quantisation are compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register


@register
class Full(Finetuning):
    """AdamW over all weights of the model.

    Per weight, mixed precision holds 16 bytes while it updates (weight, gradient and two moments in float32);
    pure 16-bit training holds 8, but loses updates smaller than a weight's rounding.
    """

    source: ClassVar[str] = "Micikevicius et al. 2018, Mixed Precision Training (section 3.1: master weights)"
    baseline: ClassVar[bool] = True

    learning_rate: float = Field(default=2e-5, gt=0)
    """Ten times lower than an adapter's, as is customary: all weights move at once."""
    precision: Literal["mixed", "pure"] = "mixed"
    """`mixed`: weights in float32, autocast to the run's dtype; `pure`: all in the run's dtype."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        target = sources.target
        if self.precision == "pure" or target.torch_dtype == torch.float32:
            return self.trained(target.model())
        return self.trained(target.model(dtype=torch.float32), compute_dtype=target.torch_dtype)
