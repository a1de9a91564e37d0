"""Reward against KL divergence: what can be had without training, and where an arm's own path reaches a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench import stats

Table = Sequence[Sequence[float]]
"""Rewards of the reference's own completions: per prompt, of each of them."""
Point = list[float]
"""KL divergence from the reference [nat], reward."""

TEMPERATURES = (4.0, 2.0, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
"""Of the exponential tilt, in units of the reward."""


def best_of(table: Table) -> list[Point]:
    """Best of n for n = 1, 2, 4 ... completions: at most log n - (n - 1) / n nats away (Beirami et al. 2024).

    The expected best of n out of the N completions of a prompt is exact: the i-th smallest is the best of
    C(i - 1, n - 1) of the C(N, n) choices.
    """
    count = min(map(len, table))
    points = []
    n = 1
    while n <= count:
        points.append([best_of_bound(n), _mean([_expected_best(sorted(rewards), n) for rewards in table])])
        n *= 2
    return points


def best_of_bound(n: int) -> float:
    """Upper bound of the KL divergence of best of n from the reference [nat]."""
    return math.log(n) - (n - 1) / n


def _expected_best(ordered: Sequence[float], n: int) -> float:
    ways = math.comb(len(ordered), n)
    return sum(reward * math.comb(place, n - 1) for place, reward in enumerate(ordered)) / ways


def tilt(table: Table, temperatures: Sequence[float] = TEMPERATURES) -> list[Point]:
    """The policies that no other beats at their KL divergence, pi_ref exp(r / b), on the completions in the table.

    Each prompt's completions stand for the reference's distribution. With N of them no divergence above log N can
    be seen, and the reward of a strong tilt comes out too low.
    """
    points = []
    for temperature in temperatures:
        divergences, rewards = [], []
        for own in table:
            top = max(own)
            raw = [math.exp((reward - top) / temperature) for reward in own]
            weights = [one / sum(raw) for one in raw]
            rewards.append(sum(weight * reward for weight, reward in zip(weights, own, strict=True)))
            divergences.append(sum(weight * math.log(weight * len(own)) for weight in weights if weight))
        points.append([_mean(divergences), _mean(rewards)])
    return points


def at_budget(divergences: Sequence[float], rewards: Sequence[Sequence[float]], budget: float) -> list[float]:
    """Reward of each prompt where an arm's path was last at a KL divergence; of an arm that ends there, its end's.

    Between checkpoints it is taken as linear in the root of the divergence, as rewards rise near the reference (Gao et
    al. 2023, Scaling Laws for Reward Model Overoptimization, section 3); over the divergence itself a chord is too low.

    Args:
        divergences: mean over the prompts, of each checkpoint in turn [nat].
        rewards: per checkpoint, of each prompt.

    Returns:
        Those of the last checkpoint where all are below the budget, of the first where all are above it.
    """
    for place in range(len(divergences) - 1, 0, -1):
        before, after = divergences[place - 1], divergences[place]
        if min(before, after) <= budget <= max(before, after):
            # a divergence that is 0 may be summed to a little less
            start, end, wanted = (math.sqrt(max(one, 0.0)) for one in (before, after, budget))
            share = (wanted - start) / (end - start) if end != start else 1.0
            return [low + share * (high - low) for low, high in zip(rewards[place - 1], rewards[place], strict=True)]
    return list(rewards[-1] if divergences[-1] < budget else rewards[0])


def rise(table: Table, reward: float, samples: int) -> float | None:
    """How far a reward lies above the reference's, in standard deviations of the reference's own.

    Such a deviation is that of the mean over `samples` of the reference's completions of every prompt: how much a look
    at the reference itself would vary. None where the reference's rewards do not.
    """
    variances = [stats.variance(own) for own in table]
    deviation = math.sqrt(_mean(variances) / (samples * len(table)))
    return (reward - _mean([_mean(own) for own in table])) / deviation if deviation else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
