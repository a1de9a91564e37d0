"""Plain decoding, one token a round: what every other way of decoding is compared with."""

from __future__ import annotations

from typing import ClassVar

from bench.families.decoding import Batch, Decoding, DecodingJob, DecodingPrepared, Emitted
from bench.families.ragged import read_rows
from bench.registry import register


@register
class Autoregressive(Decoding):
    """One forward pass of the target per token, over a preallocated key/value cache."""

    source: ClassVar[str] = "the definition of an autoregressive language model"
    baseline: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        with job.phase("forward"):
            logits = read_rows(prepared.model, [row.last for row in batch.rows], batch.cache)  # (1, vocabulary) each
        with job.phase("sample"):
            rows = zip(logits, batch.rows, strict=True)
            return [job.choose(one, row.generator)[: row.room] for one, row in rows], {}
