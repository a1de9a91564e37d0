"""Techniques whose figures are known beforehand; the base does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from bench.families.decoding import Batch, Decoding, DecodingJob, DecodingPrepared, Emitted
from bench.registry import register
from bench.technique import Step


@register
class Still(Decoding):
    """Emit one and the same id, at no cost."""

    baseline: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    source: ClassVar[str] = "nothing"

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        raise AssertionError

    def token(self) -> int:
        return 65

    def work(self, prepared: DecodingPrepared) -> None:
        """What happens inside a step."""

    def steps(self, prepared: DecodingPrepared, job: DecodingJob) -> Iterator[Step]:
        for prompt in job.prompts:
            for index in range(job.max_new_tokens):
                self.work(prepared)
                ids = torch.tensor([self.token()], device=prompt.device)
                yield Step("decode" if index else "prefill", 1, (ids,))
