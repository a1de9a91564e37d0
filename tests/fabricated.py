"""Runs whose figures are chosen: folders as the runner leaves them, with records of arms that were never run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.store import Run

DEVICE = {"kind": "cpu", "name": "A machine, 2 cores", "dtype": "float32"}
ENVIRONMENT = {"device": DEVICE, "versions": {"torch": "2.0"}, "code": {"commit": "a" * 40, "dirty": False}, "argv": []}
CONFIG = {"name": "x", "comparisons": [{"workload": {"name": "w"}, "arms": ["base", "arm"]}]}


def ended(arm: str, **changes: Any) -> dict[str, Any]:
    """An arm that ended well and has no figure yet; `changes` take the place of what is there."""
    return {
        "cell": f"c.{arm}.seed0",
        "comparison": "c",
        "family": "f",
        "arm": arm,
        "baseline": "base",
        "seed": 0,
        "status": "ok",
        "reason": "",
        "stamps": [],
        "looks": [],
        "technique": {"name": arm, "parameters": {"k": 1}, "trains": False},
        "model": {"sha256": "m", "random": False},
        "primary": {"quality": "nll", "latency": "time_per_step", "memory": "peak_memory"},
        "quality": {"metrics": {}, "gates": [{"name": "true", "passed": True, "detail": ""}]},
        "rounds": [],
        **changes,
    }


def noisy(level: float, name: str, count: int, share: float = 0.002) -> list[float]:
    """So many figures about a level, the same ones for the same name."""
    draw = random.Random(name)
    return [level * (1 + draw.uniform(-share, share)) for _ in range(count)]


def record(
    arm: str,
    seconds: float = 1.0,
    nll: float = 3.0,
    peak: float = 1e9,
    held: float = 5e8,
    rounds: int = 6,
    salt: str = "",
    gate: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """A timed and scored arm.

    Args:
        seconds: of a step, on average.
        nll: of an item, on average, over 100 items that all arms share.
        peak: bytes at most.
        held: bytes of the named components, the same in every round.
        salt: another one gives other noise.
        gate: whether its gate passed.
    """
    times, peaks = noisy(seconds, f"{arm} {salt} time", rounds), noisy(peak, f"{arm} {salt} peak", rounds)
    figures = {
        "workload": {"name": "w", "parameters": {"items": 100, "path": ""}},
        "inputs_sha256": "i",
        "environment": ENVIRONMENT,
        "quality": {
            "metrics": {"nll": [nll + item for item in noisy(0.001, f"{arm} {salt} items", 100, 1.0)]},
            "gates": [{"name": "true", "passed": gate, "detail": "it is not" if not gate else ""}],
        },
        "rounds": [
            {
                "round": number,
                "bursts": [{"used": True, "samples": {"kind": ["train"], "seconds": [time], "tokens": [8]}}],
                "memory": {"peak": most, "reserved": None, "named": held, "largest": {}},
            }
            for number, (time, most) in enumerate(zip(times, peaks, strict=True))
        ],
    }
    return ended(arm, **{**figures, **changes})


def run(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any] = ENVIRONMENT,
    config: Mapping[str, Any] = CONFIG,
) -> Run:
    """A folder with these records."""
    made = Run(folder)
    made.write_manifest(
        {
            "experiment": "x",
            "config": dict(config),
            "config_sha256": "c",
            "environment": dict(environment),
            "cells": [one["cell"] for one in records],
        }
    )
    for one in records:
        made.finish(one["cell"], {**one, "config_sha256": "c"})
    return made


def pair(tmp_path: Path, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> tuple[Run, Run]:
    return run(tmp_path / "a", first), run(tmp_path / "b", second)
