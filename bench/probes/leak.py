"""Whether what a technique holds without a name grows from step to step."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

FEWEST = 4
"""Steps under which a growth has no slope."""
SLOPE = 64 * 1024
"""Growth that is a leak [B/step]; less is a list of ids or a counter."""
MOST_POINTS = 256
"""Readings that a slope is drawn through; of more, evenly spaced ones."""


def leak(unnamed: Sequence[int]) -> tuple[int | None, str]:
    """Steady growth of what no component names, and the reason if that is unknown.

    The slope is the median over all pairs of readings (Theil 1950, Sen 1968), which single jumps do not move.

    Args:
        unnamed: bytes alive that no component names, at the end of each step.

    Returns:
        Bytes per step, 0 where the growth is no more than `SLOPE` or not in most steps; None for too few steps.
    """
    if len(unnamed) < FEWEST:
        return None, f"a leak shows from {FEWEST} steps on, this burst has {len(unnamed)}: set more steps a burst"
    places = range(0, len(unnamed), -(-len(unnamed) // MOST_POINTS))
    slope = statistics.median(
        (unnamed[later] - unnamed[place]) / (later - place)
        for index, place in enumerate(places)
        for later in places[index + 1 :]
    )
    grew = sum(after > before for before, after in itertools.pairwise(unnamed))
    if slope > SLOPE and grew > (len(unnamed) - 1) / 2:
        return round(slope), ""
    return 0, ""
