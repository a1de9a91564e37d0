"""What a drafted token costs beside one of the target's, and what a draft of some length is then worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.families import attention
from bench.families import cache as kv
from techniques.decoding.core.reduced_head import reduce
from techniques.decoding.distil.measuring import GAMMAS

HELD = 160
"""Tokens in the cache while one is timed."""


def times(target: Any, draft: Callable[[], Any], kept: Tensor, repeats: int = 40) -> dict[str, float]:
    """Median times of one forward pass, all kinds taken in turn [s].

    Args:
        target: the model that verifies.
        draft: makes the draft model, in the same precision.
        kept: ids of the reduced head.

    Returns:
        `target_N` reads N tokens, `draft` and `draft_reduced` one.
    """
    whole, cut = draft(), draft()
    reduce(cut, kept)
    steps = {f"target_{count}": _step(target, count) for count in (1, *(gamma + 1 for gamma in GAMMAS))}
    steps |= {"draft": _step(whole, 1), "draft_reduced": _step(cut, 1)}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(repeats + 3):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if index >= 3:
                taken[name].append(time.perf_counter() - began)
    return {name: float(torch.tensor(found).median()) for name, found in taken.items()}


def worth(tokens_per_round: Mapping[str, float], seconds: Mapping[str, float], draft: str) -> dict[str, float]:
    """Tokens per second against decoding without a draft, by length of the draft."""
    one = seconds["target_1"]
    return {
        gamma: tokens * one / (int(gamma) * seconds[draft] + seconds[f"target_{int(gamma) + 1}"])
        for gamma, tokens in tokens_per_round.items()
    }


def _step(model: Any, count: int) -> Callable[[], object]:
    attention.pack(model)
    cache = kv.preallocated(model.config, HELD, count)
    ids = torch.zeros(1, count, dtype=torch.long)
    with torch.inference_mode():
        kv.read(model, torch.zeros(1, HELD, dtype=torch.long), cache)

    @torch.inference_mode()
    def step() -> None:
        kv.read(model, ids, cache, keep=0)
        cache.crop(-count)

    return step
