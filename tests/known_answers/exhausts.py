"""A known answer."""

from __future__ import annotations

import psutil
import torch

from bench.families.decoding import DecodingPrepared
from bench.registry import register
from known_answers.still import Still


@register
class Exhausts(Still):
    """Ask for more memory than the machine has, without touching it."""

    baseline = False

    def work(self, prepared: DecodingPrepared) -> None:
        total = psutil.virtual_memory().total
        prepared.state = [torch.empty(1 << 30, dtype=torch.uint8) for _ in range(2 * total >> 30)]
