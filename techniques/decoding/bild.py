"""Big Little Decoder: the small model goes on until it is unsure, the large one looks back and corrects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.claim import Claim, at_least, at_most
from bench.errors import Unsupported
from bench.families.decoding import Batch, DecodingJob, DecodingPrepared, Emitted, best_of
from bench.families.ragged import read_rows
from bench.registry import register
from techniques.decoding.core import drafting
from techniques.decoding.core.chain import count
from techniques.decoding.core.drafted import Drafted


@register
class Bild(Drafted):
    """Greedy decoding by a small model, with fallback and rollback to the target. Lossy.

    *Fallback*: a token of the small model less probable than `fallback` is not taken; the target reads what was
    written since it last did and writes the next token. *Rollback*: the earliest small token whose negative
    log-probability under the target exceeds `rollback`, and that is not the target's own choice, is replaced by that
    choice, and what follows it is dropped.
    """

    source: ClassVar[str] = "Kim et al. 2023, Speculative Decoding with Big Little Decoder, algorithm 1"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="speed",
            statement="Up to 2.12 times the speed of the large model alone.",
            source="Kim et al. 2023, Speculative Decoding with Big Little Decoder, abstract",
            expression="tpot(autoregressive) / tpot(bild)",
            expected=at_least(2.02),
            conditions={"machine": "*T4*", "model": "*t5-large*|*mt5-large*"},
            out_of_reach="T5 is an encoder-decoder, which this program does not run",
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12},
        ),
        Claim(
            name="quality",
            statement="The quality of the output hardly falls.",
            source=(
                "Kim et al. 2023, Speculative Decoding with Big Little Decoder, abstract (minimal generation "
                "quality degradation)"
            ),
            expression="output_nll(bild) - output_nll(autoregressive)",
            expected=at_most(0.05),
            conditions={"machine": "*T4*", "model": "*t5-large*|*mt5-large*"},
            out_of_reach="T5 is an encoder-decoder, which this program does not run",
            workload={"name": "six_categories", "burst_prompts": 1, "items": 12},
        ),
    )
    lossless: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"bild_strict": {"fallback": 0.8, "rollback": 2.0}}

    fallback: float = Field(default=0.6, ge=0.0, le=1.1)
    """Least probability of a small token; above 1 the target writes everything."""
    rollback: float = Field(default=5.0, ge=0.0)
    """Greatest negative log-probability of a small token under the target [nat]."""
    draft_tokens: int = Field(default=10, ge=1, le=64)
    """The target looks back after this many small tokens at the latest [tokens]."""

    @property
    def ahead(self) -> int:
        return self.draft_tokens

    def begin(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Any:
        if job.temperature > 0:
            raise Unsupported("bild is a rule for greedy decoding; run it at temperature 0")
        return super().begin(prepared, batch, job)

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        with job.phase("draft"):
            ((drafted,), _) = drafting.propose(prepared, batch, job, self.draft_tokens, self.unsure, keep_last=False)
        with job.phase("verify"):
            (logits,) = read_rows(prepared.model, [torch.cat([batch.only.last, drafted])], batch.cache, every=True)
        with job.phase("sample"):
            tokens, kept = rolled_back(logits, drafted, self.rollback)
        return [tokens], count(len(drafted), kept)

    def unsure(self, logits: Tensor, token: Tensor) -> bool:
        return float(logits.float().softmax(-1)[0, token]) < self.fallback


def rolled_back(logits: Tensor, drafted: Tensor, threshold: float) -> tuple[Tensor, int]:
    """The small tokens up to the first that the target will not have, and the target's own token behind them.

    Args:
        logits: of the target at the drafted positions and behind them, `(g + 1, vocabulary)`.
        drafted: ids, `(g,)`.
    """
    best = best_of(logits)
    surprise = -logits[:-1].float().log_softmax(-1).gather(-1, drafted[:, None])[:, 0]
    unwanted = (surprise > threshold) & (best[:-1] != drafted)
    kept = int((~unwanted).long().cumprod(0).sum())
    return torch.cat([drafted[:kept], best[kept : kept + 1]]), kept
