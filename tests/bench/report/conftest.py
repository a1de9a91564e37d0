"""Records of every ending an arm can have, as the runner would write them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
from fabricated import ended

SCRIPT = "<script>alert('x')</script>"
ENVIRONMENT = {
    "device": {"kind": "cpu", "name": "Test CPU, 2 cores", "dtype": "float32"},
    "code": {"commit": "c" * 40, "dirty": False},
}
SECRET = 0.0123456
"""Seconds a token of the arm whose speed must not be shown."""


def arm(name: str, tpot: float = 0.1, peak: float = 1e9, nll: float = 2.0, **changes: Any) -> dict[str, Any]:
    """One record: five rounds, twenty items, all gates passed, times and items that vary from arm to arm."""
    rng = random.Random(name)
    gates = [{"name": "lossless", "passed": True, "detail": "equal"}]
    rounds = []
    for number in range(5):
        seconds = [0.2, tpot * (1 + 0.01 * rng.random())]
        burst = {
            "index": number,
            "try": 0,
            "used": True,
            "load": {"disturbed": False},
            "samples": {"kind": ["prefill", "decode"], "seconds": seconds, "tokens": [1, 1]},
        }
        top = int(peak * (1 + 0.001 * rng.random()))
        parts = {"runtime": 3 * 10**8, "weights": 4 * 10**8, "activations": top - 8 * 10**8}
        memory = {
            "peak": top,
            "reserved": None,
            "named": 4 * 10**8,
            "largest": {"weights": 4 * 10**8},
            "components": {"weights": 4 * 10**8},
            "parts": parts,
            "explained": sum(parts.values()) / top,
            "rest": top - sum(parts.values()),
            "excess": 0,
            "leak": 0,
            "leak_reason": "",
            "reason": "",
        }
        rounds.append({"round": number, "bursts": [burst], "memory": memory})
    told = {
        "schema": 1,
        "cell": f"decoding.chat.{name}",
        "comparison": "decoding.chat",
        "family": "decoding",
        "where": "",
        "detail": "",
        "curve": [],
        "rounds": rounds,
        "rounds_reason": "",
        "quality": {
            "metrics": {"output_nll": [nll + 0.3 * rng.random() for _ in range(20)]},
            "gates": gates,
            "texts": [{"prompt": "one & two", "output": f"said by {name}"}],
            "curves": {},
            "counts": {},
        },
        "model": {"name": "some-model", "origin": "made up", "random": False, "parameters": 1_500_000_000},
        "technique": {"name": name, "trains": False, "parameters": {"width": 3}, "source": "a paper"},
        "workload": {"name": "chat", "parameters": {"items": 20, "path": ""}},
        "primary": {"quality": "output_nll", "latency": "tpot", "memory": "peak_memory"},
        "environment": ENVIRONMENT,
    }
    return ended(name, **{**told, **changes})


def trained(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The record of a training run under a seed; timed under the first."""
    record = arm(name, **changes)
    rng = random.Random(name)
    step = 2.0 if name == "base" else 1.0
    for part in record["rounds"]:
        seconds = [step * (1 + 0.01 * rng.random())]
        part["bursts"][0]["samples"] = {"kind": ["train"], "seconds": seconds, "tokens": [8]}
    loss = [[float(n), 3.0 - 0.1 * n + 0.05 * seed] for n in range(12)]
    record["quality"] |= {"curves": {"loss": loss}, "texts": []}
    record["quality"]["metrics"] = {"nll": record["quality"]["metrics"]["output_nll"]}
    return {
        **record,
        "cell": f"finetuning.text.{name}.seed{seed}",
        "comparison": "finetuning.text",
        "family": "finetuning",
        "seed": seed,
        "rounds": record["rounds"] if seed == 0 else [],
        "technique": {**record["technique"], "trains": True},
        "primary": {"quality": "nll", "latency": "time_per_step", "memory": "peak_memory"},
    }


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    return arm


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Every ending: ok, invalid, ungated, failed, unsupported, stamped; several seeds; random weights."""
    invalid = arm("wrong", tpot=SECRET, peak=7.654e9)
    invalid["quality"]["gates"] = [{"name": "lossless", "passed": False, "detail": "token 3 differs"}]
    ungated = arm("unchecked", tpot=0.08)
    ungated["quality"]["gates"] = []
    lost: dict[str, Any] = {"rounds": [], "quality": None}
    leaky = arm(SCRIPT, tpot=0.05, peak=1.4e9, stamps=["dirty"])
    leaky["rounds"][0]["memory"] |= {"leak": 2_000_000, "explained": 0.5}
    again = copy.deepcopy(leaky["rounds"][1]["bursts"][0])
    leaky["rounds"][1]["bursts"].insert(0, {**again, "used": False})
    made_up = arm("base", model={"name": "shapes", "origin": "random", "random": True, "parameters": 7e9})
    made_up_fast = arm("fast", tpot=0.05, model=made_up["model"])
    for record in (made_up, made_up_fast):
        record |= {"comparison": "decoding.shapes", "cell": f"decoding.shapes.{record['arm']}"}
    diverged = [[0.0, 3.0], [1.0, 5.0], [2.0, 9.0]]
    return [
        arm("base"),
        leaky,
        invalid,
        ungated,
        arm("broken", status="failed", reason="RuntimeError: no | such <b>kernel</b>", model=None, **lost),
        arm("elsewhere", status="unsupported", reason="needs rotary positions", **lost),
        *(trained("base", seed) for seed in range(2)),
        *(trained("adapters", seed, peak=9e8) for seed in range(2)),
        {**trained("diverged", 0), "status": "failed", "reason": "loss is not finite", **lost, "curve": diverged},
        made_up,
        made_up_fast,
    ]


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": "fabricated",
        "started": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T01:00:00Z",
        "config": {"name": "fabricated", "description": f"Every ending. {SCRIPT}"},
        "config_sha256": "a" * 64,
        "environment": ENVIRONMENT,
        "calibration": None,
        "cells": [],
    }
