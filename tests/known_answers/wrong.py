"""A known answer."""

from __future__ import annotations

from bench.registry import register
from known_answers.still import Still


@register
class Wrong(Still):
    """Claim to be lossless and emit another id."""

    baseline = False

    lossless = True

    def token(self) -> int:
        return 66
