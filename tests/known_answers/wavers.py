"""A known answer."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Wavers(Still):
    """Score, or emit, something else each time."""

    baseline = False

    relative: float = 0.5
    """Log-likelihoods grow by up to this share."""
    ids: bool = False
    """Emit another id each time, too."""
    unless: Literal["never", "one thread", "deterministic", "either"] = "never"
    """When to keep still."""

    @property
    def keeps_still(self) -> bool:
        one_thread = self.unless in {"one thread", "either"} and torch.get_num_threads() == 1
        return one_thread or (
            self.unless in {"deterministic", "either"} and torch.are_deterministic_algorithms_enabled()
        )

    def draw(self) -> float:
        """A random number from 0 to 1 that no seed reaches."""
        return 0.0 if self.keeps_still else int.from_bytes(os.urandom(6)) / 2**48

    def token(self) -> int:
        return 65 + int(26 * self.draw()) if self.ids else super().token()

    def logprobs(self, prepared: DecodingPrepared, prompt: Tensor, output: Tensor) -> Tensor:
        return super().logprobs(prepared, prompt, output).double() * (1 + self.relative * self.draw())
