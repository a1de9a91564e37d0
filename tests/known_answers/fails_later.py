"""A known answer."""

from __future__ import annotations

from collections.abc import Iterator

from bench.families.decoding import DecodingJob, DecodingPrepared
from bench.registry import register
from bench.technique import Step
from known_answers.still import Still


@register
class FailsLater(Still):
    """Score well, then fail when timed."""

    baseline = False

    def steps(self, prepared: DecodingPrepared, job: DecodingJob) -> Iterator[Step]:
        if len(job.prompts) == 1:
            raise ValueError("planted in the timing pass")
        yield from super().steps(prepared, job)
