"""A known answer."""

from __future__ import annotations

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Raises(Still):
    """Fail in a step."""

    baseline = False

    def work(self, prepared: DecodingPrepared) -> None:
        raise ValueError("planted")
