"""Rounds as the runner would write them, of arms whose truth is known: what the statistics are tested on.

A process has a level of its own; its steps are autocorrelated, and some are outliers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STEPS = 15
"""Per burst."""
AR = 0.3
"""Autocorrelation of neighbouring steps."""


def rounds(
    rng: np.random.Generator,
    count: int,
    factor: float,
    process: float = 0.03,
    within: float = 0.05,
    memory: float = 0.003,
    outlying: float = 0.02,
) -> list[dict[str, Any]]:
    """Two bursts of timed steps and a peak of memory per process.

    Args:
        factor: true ratio of the arm to a baseline of 1.
        process: standard deviation of a process' level, on the log scale.
        within: the same of a step within its process.
        memory: the same of a process' peak.
        outlying: share of steps that take about twice as long.
    """
    noise = rng.normal(0, within, (count, 2, STEPS))
    for step in range(1, STEPS):  # autocorrelation
        noise[..., step] = AR * noise[..., step - 1] + math.sqrt(1 - AR**2) * noise[..., step]
    noise += rng.normal(0, process, (count, 1, 1))
    outliers = rng.random((count, 2, STEPS)) < outlying
    times = factor * np.exp(noise) * np.where(outliers, 1 + rng.exponential(1.0, outliers.shape), 1.0)
    peaks = factor * 1e9 * np.exp(rng.normal(0, memory, count))
    kind, tokens = ["train"] * STEPS, [8] * STEPS
    return [
        {
            "round": number,
            "bursts": [
                {"used": True, "samples": {"kind": kind, "seconds": seconds, "tokens": tokens}}
                for seconds in times[number].tolist()
            ],
            "memory": {"peak": peaks[number], "reserved": None, "named": 1, "largest": {}},
        }
        for number in range(count)
    ]
