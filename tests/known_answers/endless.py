"""A known answer."""

from __future__ import annotations

import time

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Endless(Still):
    """Never come back."""

    baseline = False

    def work(self, prepared: DecodingPrepared) -> None:
        while True:
            time.sleep(0.1)
