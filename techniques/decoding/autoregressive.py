"""Plain decoding, one token a round: what every other way of decoding is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from bench.families import cache as kv
from bench.families.decoding import Decoding, DecodingJob, DecodingPrepared, Row
from bench.registry import register


@register
class Autoregressive(Decoding):
    """One forward pass of the target per token, over a preallocated key/value cache."""

    source: ClassVar[str] = "the definition of an autoregressive language model"
    baseline: ClassVar[bool] = True

    def round(self, prepared: DecodingPrepared, row: Row, job: DecodingJob) -> tuple[Tensor, Mapping[str, int]]:
        with job.phase("forward"):
            logits = kv.read(prepared.model, row.last[None], row.cache)  # (1, 1, vocabulary)
        with job.phase("sample"):
            return job.choose(logits[0], row.generator), {}
