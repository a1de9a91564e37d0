"""A known answer."""

from __future__ import annotations

import os

from bench.families.decoding_workload import DecodingWorkload
from bench.models import Sources
from bench.registry import register
from bench.workload import Built


@register
class Shifting(DecodingWorkload):
    """Ask something else each time, whatever the seed."""

    ids: bool = True
    """Other prompts; without it a figure moves by a billionth."""

    def build(self, sources: Sources, seed: int) -> Built:
        drawn = list(os.urandom(16))
        timed = [65, *(drawn if self.ids else [])]
        moved = 0.0 if self.ids else 1e-9 * int.from_bytes(drawn[:4]) / 2**32
        return {"scored": [[65, 66]] * self.items, "timed": [timed] * self.timed_prompts, "figure": 1.0 + moved}
