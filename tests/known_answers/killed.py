"""A known answer."""

from __future__ import annotations

import os
import signal

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Killed(Still):
    """Be killed from outside."""

    baseline = False

    def work(self, prepared: DecodingPrepared) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
