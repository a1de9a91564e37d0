"""A known answer."""

from __future__ import annotations

import time

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Waits(Still):
    """Ten milliseconds a step."""

    baseline = False

    def work(self, prepared: DecodingPrepared) -> None:
        end = time.perf_counter() + 0.010
        while time.perf_counter() < end:
            pass
