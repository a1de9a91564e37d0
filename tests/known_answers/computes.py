"""A known answer."""

from __future__ import annotations

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Computes(Still):
    """The same work a step, some milliseconds of one core if nobody takes it."""

    def work(self, prepared: DecodingPrepared) -> None:
        sum(range(600_000))
