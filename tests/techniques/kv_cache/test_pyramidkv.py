"""PyramidKV keeps SnapKV's choice, more of it in the lower layers."""

from __future__ import annotations

import itertools

import pytest
from evicted import CONTEXT, MODELS, run, window_scores

from techniques.kv_cache.pyramidkv import PyramidKv


def test_budgets_fall_in_a_line_and_add_up() -> None:
    technique = PyramidKv(budget=200)
    shares = technique.of_layers(128, 1000, 32)
    assert sum(shares) == 128 * 32
    # beside the window of 8: the last layer keeps 120 / 20, the first 2 * 120 less that
    assert (shares[0], shares[-1]) == (8 + 234, 8 + 6)
    steps = [one - other for one, other in itertools.pairwise(shares)]
    assert min(steps) >= 6
    assert max(steps) <= 9
    assert technique.of_layers(128, 1000, 1) == [128]


@pytest.mark.parametrize("kept", [9, 20, 100, 150, 199])
def test_no_layer_keeps_more_than_there_is(kept: int) -> None:
    shares = PyramidKv().of_layers(kept, 200, 30)
    assert sum(shares) == 30 * kept
    assert max(shares) <= 200
    assert min(shares) >= 8
    assert shares == sorted(shares, reverse=True)


def test_a_flat_pyramid_is_snapkv() -> None:
    assert PyramidKv(beta=1.0).of_layers(50, 500, 6) == [50] * 6


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_keeps_its_share_of_the_best(name: str) -> None:
    technique = PyramidKv(budget=34, window=4, kernel=1)
    made = run(technique, name, new=0)
    shares = technique.of_layers(22, CONTEXT, 3)
    assert shares == [39, 22, 5]
    for layer, row, head in made.each():
        got = made.held[0][layer][row][head] - set(range(CONTEXT - 4, CONTEXT))
        mine = window_scores(made, layer, row, head, technique)
        assert got == set(mine.topk(shares[layer] - 4).indices.tolist())


def test_budgets_fall_where_most_of_the_text_is_still_to_come() -> None:
    plans = PyramidKv(budget=60, window=4, every=2).plans(40, 200, 3)
    # 58 in the mean: the first layer's 108 are more than the context has
    assert [plan.kept + plan.room for plan in plans] == [111, 60, 9]
    assert [plan.kept for plan in plans] == [40, 40, 7]
    assert all(plan.goes_on for plan in plans)
