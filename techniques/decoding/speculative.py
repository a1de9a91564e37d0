"""Speculative decoding: a small model drafts a few tokens, the target verifies them in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.claim import Claim, about, at_least
from bench.families.decoding import Batch, DecodingJob, DecodingPrepared, Emitted
from bench.registry import register
from techniques.decoding.core import drafting
from techniques.decoding.core.acceptance import draw, token_wise
from techniques.decoding.core.chain import read_draft, verify
from techniques.decoding.core.drafted import Drafted

LENGTHS = (1, 2, 4, 8)
"""Drafts whose verification is timed, whatever length is drafted [tokens]."""


@register
class Speculative(Drafted):
    """Draft gamma tokens with a small model, accept each with probability min(1, p/q) until the first rejection.

    A rejected token is replaced by one from norm(max(0, p - q)); behind a draft accepted in full the target adds one
    of its own. The output follows the target's law exactly.
    """

    source: ClassVar[str] = "Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="lossless",
            headline="Speculative decoding does not change what is written.",
            statement=(
                "The output is that of the target alone: greedily the same tokens, but where the target's first two "
                "choices tie within rounding."
            ),
            source="Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, abstract",
            expression="gates.lossless(speculative)",
            expected=at_least(1.0),
            needs={"workload.temperature": "0.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12},
        ),
        Claim(
            name="formula",
            statement=(
                "Wall time improves as the formula of acceptance rate and cost of the draft predicts, where a draft is "
                "verified in the time of one token."
            ),
            source="Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, theorem 3.8",
            expression="formula_reached(speculative)",
            expected=about(1.0, 0.1),
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12},
        ),
        Claim(
            name="speed",
            headline="Speculative decoding is 2 to 3 times as fast.",
            statement="2 to 3 times the speed of decoding token by token.",
            source=(
                "Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, abstract (T5-XXL)"
            ),
            expression="tpot(autoregressive) / tpot(speculative)",
            expected=at_least(2.0),
            conditions={"device": "cuda", "model": "*t5-xxl*|*t5-11b*", "workload.batch": "1"},
            out_of_reach="T5 is an encoder-decoder, which this program does not run",
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12},
        ),
    )
    batched: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"speculative_short_head": {"head_tokens": 2048}}

    draft_tokens: int = Field(default=3, ge=1, le=32)
    """Tokens drafted per round, gamma [tokens]."""

    @property
    def ahead(self) -> int:
        return self.draft_tokens

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        with job.phase("draft"):
            drafted, q = drafting.propose(prepared, batch, job, self.draft_tokens)
        return verify(prepared, batch, job, drafted, q, self.decide)

    def pieces(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Mapping[str, Callable[[], object]]:
        room = min(row.room for row in batch.rows) + self.ahead
        lengths = [length for length in LENGTHS if length < room]
        return {
            "draft": lambda: drafting.propose(prepared, batch, job, self.draft_tokens),
            "verify": lambda: read_draft(prepared, batch, self.draft_tokens),
            **{f"verify_{length}": partial(read_draft, prepared, batch, length) for length in lengths},
        }

    def decide(self, p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        return draw(token_wise(p, q, drafted), drafted, generator)
