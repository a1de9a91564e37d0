"""A known answer."""

from __future__ import annotations

import torch

from bench.families.decoding import DecodingPrepared
from bench.models import Sources
from bench.registry import register
from known_answers.still import Still


@register
class Holds(Still):
    """Hold 64 MiB more."""

    baseline = False

    def prepare(self, sources: Sources) -> DecodingPrepared:
        prepared = super().prepare(sources)
        prepared.state = torch.ones(64 << 20, dtype=torch.uint8)
        prepared.components["ballast"] = lambda: [prepared.state]
        return prepared
