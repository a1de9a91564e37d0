"""Oracle lines are exact for the completions at hand; an arm's reward is read where its own path meets the budget."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from benchmarks.preference.core import frontier
from benchmarks.preference.core.frontier import at_budget, best_of, best_of_bound, tilt

TABLE = [[0.3, -0.5, 0.9, 0.1], [0.0, 0.0, 0.7, -1.0]]


def test_best_of_n_is_the_mean_over_all_choices():
    points = best_of(TABLE)
    assert len(points) == 3
    for (_, reward), n in zip(points, (1, 2, 4), strict=True):
        choices = [[max(choice) for choice in itertools.combinations(own, n)] for own in TABLE]
        assert reward == pytest.approx(sum(sum(best) / len(best) for best in choices) / 2)
    assert [kl for kl, _ in points] == pytest.approx([0.0, math.log(2) - 0.5, math.log(4) - 0.75])


def test_bound_of_best_of_n_holds_for_distinct_rewards():
    # of many equally likely completions the n-th power law: KL is the bound itself in the limit
    count, n = 2000, 4
    law = [(i / count) ** n - ((i - 1) / count) ** n for i in range(1, count + 1)]
    exact = sum(p * math.log(p * count) for p in law)
    assert exact == pytest.approx(best_of_bound(n), abs=2e-3)


def test_tilt_is_the_exponential_family_of_the_table():
    ((kl, reward),) = tilt(TABLE, [0.5])
    divergences, means = [], []
    for own in TABLE:
        z = sum(math.exp(r / 0.5) for r in own)
        p = [math.exp(r / 0.5) / z for r in own]
        means.append(sum(a * b for a, b in zip(p, own, strict=True)))
        divergences.append(sum(a * math.log(a / 0.25) for a in p))
    assert kl == pytest.approx(sum(divergences) / 2)
    assert reward == pytest.approx(sum(means) / 2)
    # colder: further away and better, up to the best of the table
    points = tilt(TABLE, [100.0, 1.0, 0.1, 0.001])
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert [p[1] for p in points] == sorted(p[1] for p in points)
    assert points[0][0] == pytest.approx(0.0, abs=1e-4)
    assert points[-1] == pytest.approx([math.log(4), 0.8])


def test_no_policy_on_the_table_beats_the_tilt_at_its_divergence():
    (kl, reward) = tilt(TABLE[:1], [0.5])[0]
    own = TABLE[0]
    for tried in itertools.product([0.05, 0.2, 0.4, 0.6, 0.9], repeat=4):
        p = [one / sum(tried) for one in tried]
        if sum(a * math.log(a * 4) for a in p) <= kl:
            assert sum(a * b for a, b in zip(p, own, strict=True)) <= reward + 1e-12


def test_reward_is_read_at_the_last_crossing():
    divergences = [0.0, 1.0, 3.0]
    rewards = [[0.0, 1.0], [0.4, 1.0], [0.8, 0.0], [9.0, 9.0]]
    # linear in the root of the divergence
    share = (math.sqrt(2) - 1) / (math.sqrt(3) - 1)
    assert at_budget(divergences, rewards, 2.0) == pytest.approx([0.4 + 0.4 * share, 1 - share])
    assert at_budget(divergences, rewards, 1.0) == pytest.approx([0.4, 1.0])
    assert at_budget(divergences, rewards, 0.25) == pytest.approx([0.2, 1.0])
    assert at_budget([0.0, -1e-9], rewards[:2], -1e-9) == rewards[1]
    # a path that comes back: an arm that ends at the budget is worth what it is there
    assert at_budget([0.0, 4.0, 1.0], rewards[:3], 1.0) == rewards[2]
    assert at_budget([0.0, 4.0, 1.0], rewards[:3], 2.25) == pytest.approx([0.6, 0.5])
    assert at_budget([0.0, 4.0, 1.0, 9.0], rewards, 4.0) == pytest.approx([(0.8 + 9.0) / 2, 4.5])
    # its start is beyond it already
    assert at_budget([2.0, 3.0, 4.0], rewards[:3], 1.0) == rewards[0]
    # never reached: the end of the training
    assert at_budget([0.0, 0.2, 0.1], rewards[:3], 1.0) == rewards[2]
    assert at_budget([0.0], rewards[:1], 1.0) == rewards[0]


def test_a_rise_is_counted_in_deviations_of_a_look_at_the_reference():
    drawn = torch.Generator().manual_seed(0)
    table = (torch.rand(6, 4000, generator=drawn, dtype=torch.float64) + torch.arange(6)[:, None]).tolist()
    # looks at the reference: three completions of each of the same six prompts
    looks = torch.tensor(table, dtype=torch.float64)[:, :3999].view(6, -1, 3).mean((0, 2))
    mean = sum(map(sum, table)) / 24_000
    assert frontier.rise(table, mean + 2 * float(looks.std()), 3) == pytest.approx(2.0, rel=0.06)
    assert frontier.rise(table, mean, 3) == pytest.approx(0.0, abs=1e-9)
    assert frontier.rise([[0.5, 0.5]] * 3, 0.9, 3) is None
