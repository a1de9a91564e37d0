"""SpecTr: several drafts of the same length, verified together by a transport between the two laws."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.claim import Claim, above, at_least
from bench.families.decoding import Batch, DecodingJob, DecodingPrepared
from bench.registry import register
from techniques.decoding.core.kseq import draw_sequential, kseq
from techniques.decoding.core.tree import Drafts, TreeDecoding, grow, likeliest


@register
class SpecTr(TreeDecoding):
    """k drafts drawn independently; at every position the k-SEQ rule tries those that agree with what is accepted.

    The k chains are read in one pass under a tree mask. Greedily all k drafts would be the same one, so that one is
    drafted.
    """

    source: ClassVar[str] = "Sun et al. 2023, SpecTr: Fast Speculative Decoding via Optimal Transport, algorithms 2-4"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="tokens_over_one_draft",
            statement="Several drafts give more tokens per pass than one.",
            source="Sun et al. 2023, SpecTr, abstract (the gain over speculative decoding)",
            expression="accepted_length(spectr) / accepted_length(speculative)",
            expected=above(1.0),
            conditions={"model": "*palm-2*"},
            out_of_reach="PaLM 2 is not published",
            needs={"workload.temperature": "1.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12, "temperature": 1.0},
        ),
        Claim(
            name="speed_over_one_draft",
            statement="1.37 times the speed of speculative decoding with one draft.",
            source="Sun et al. 2023, SpecTr, abstract",
            expression="tpot(speculative) / tpot(spectr)",
            expected=at_least(1.3),
            conditions={"device": "cuda|tpu", "model": "*palm-2*"},
            out_of_reach="PaLM 2 is not published",
            needs={"workload.temperature": "1.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12, "temperature": 1.0},
        ),
        Claim(
            name="speed",
            statement="2.13 times the speed of decoding token by token.",
            source="Sun et al. 2023, SpecTr, abstract",
            expression="tpot(autoregressive) / tpot(spectr)",
            expected=at_least(2.03),
            conditions={"device": "cuda|tpu", "model": "*palm-2*"},
            out_of_reach="PaLM 2 is not published",
            needs={"workload.temperature": "1.0"},
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12, "temperature": 1.0},
        ),
    )

    drafts: int = Field(default=2, ge=1, le=16)
    """Drafts per round, k."""
    draft_tokens: int = Field(default=3, ge=1, le=32)
    """Length of each [tokens]."""

    @property
    def ahead(self) -> int:
        return self.drafts * self.draft_tokens

    def grown(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Drafts:
        widths = [self.drafts if job.temperature else 1] + [1] * (self.draft_tokens - 1)
        return grow(prepared, batch, job, widths, independent if job.temperature else likeliest)

    def decide(self, p: Tensor, q: Tensor, candidates: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
        return draw_sequential(kseq(p, q, candidates), candidates, generator)


def independent(law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(law, count, replacement=True, generator=generator)
