"""Block verification: the draft is judged as a whole, so that more of it is accepted under the same law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.registry import register
from techniques.decoding.core.block import block_wise, draw_block
from techniques.decoding.speculative import Speculative


@register
class BlockVerification(Speculative):
    """Speculative decoding whose rule keeps the longest beginning of the draft that its joint probability allows.

    Token by token, a draft that was luckier than needed early gains nothing from it later; here it does. The expected
    number of accepted tokens is never lower, and the output follows the target's law exactly.
    """

    source: ClassVar[str] = "Sun et al. 2025, Block Verification Accelerates Speculative Decoding, algorithm 2"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def decide(self, p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        return draw_block(block_wise(p, q, drafted), drafted, generator)
