"""A known answer."""

from __future__ import annotations

import torch

from bench.families.decoding import DecodingPrepared
from bench.models import Sources
from bench.registry import register
from known_answers.still import Still


@register
class Leaks(Still):
    """Keep 1 MiB more at every step, under no name."""

    baseline = False

    def prepare(self, sources: Sources) -> DecodingPrepared:
        prepared = super().prepare(sources)
        prepared.state = []
        return prepared

    def work(self, prepared: DecodingPrepared) -> None:
        prepared.state.append(torch.ones(1 << 20, dtype=torch.uint8))
