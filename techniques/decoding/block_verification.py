"""Block verification: the draft is judged as a whole, so that more of it is accepted under the same law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.claim import Claim, above, at_least
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
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="tokens_over_token_rule",
            statement="More tokens per pass than verification token by token, which is never better.",
            source="Sun et al. 2025, Block Verification Accelerates Speculative Decoding, abstract",
            expression="accepted_length(block_verification) / accepted_length(speculative)",
            expected=above(1.0),
            conditions={"model": "*palm-2*|*vicuna*"},
            needs={"workload.temperature": "1.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12, "temperature": 1.0},
        ),
        Claim(
            name="speed_over_token_rule",
            statement="5 % to 8 % faster than verification token by token.",
            source="Sun et al. 2025, Block Verification Accelerates Speculative Decoding, abstract",
            expression="tpot(speculative) / tpot(block_verification)",
            expected=at_least(1.05),
            conditions={"device": "cuda|tpu", "model": "*palm-2*|*vicuna*"},
            needs={"workload.temperature": "1.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12, "temperature": 1.0},
        ),
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def decide(self, p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        return draw_block(block_wise(p, q, drafted), drafted, generator)
