"""Scissorhands drops half of a full cache: what most of the latest queries passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evicted import CONTEXT, MODELS, best, run

from techniques.kv_cache.scissorhands import Scissorhands


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("values", [{}, {"history": 7, "drop": 0.25}, {"history": 3, "every": 5}])
def test_tokens_below_the_average_go(name: str, values: dict[str, Any]) -> None:
    technique = Scissorhands(budget=20, recent=4, **values)
    made = run(technique, name)
    period = technique.every or round(technique.drop * 20)
    for layer, row, head in made.each():
        attended = made.map(layer, row, head).mean(0)
        low = torch.zeros(CONTEXT)
        for query in range(max(CONTEXT - technique.history, 0), CONTEXT):
            for at in range(query + 1):
                low[at] += bool(attended[query, at] < 1 / (query + 1))
        expected = set(range(CONTEXT))
        for time, held in enumerate(made.held):
            tokens = CONTEXT + time
            if time:
                expected = expected | {tokens - 1}
                seen = sorted(expected)
                low = torch.cat([low, torch.zeros(1)])
                # the steps that fall into the history of the next eviction
                if -time % period < technique.history:
                    weights = made.weights(layer, row, head, tokens - 1, seen).mean(0)
                    for at, weight in zip(seen, weights.tolist(), strict=True):
                        low[at] += weight < 1 / len(seen)
            if time % period == 0:
                scores = torch.full((tokens,), -1e9)
                for at in expected:
                    scores[at] = at / 1e3 - low[at]  # later wins
                expected = best(scores, 20 - period, set(range(tokens - 4, tokens)))
                low = torch.zeros(tokens)
            assert held[layer][row][head] == expected, (layer, row, head, time)


def test_a_budget_is_not_kept_for_tokens_that_do_not_come() -> None:
    # half of 40 goes at once, but where 6 tokens follow there is no second time
    (plan,) = Scissorhands(budget=40, recent=4).plans(100, 6, 1)
    assert (plan.kept, plan.room, plan.goes_on) == (34, 6, False)
    (plan,) = Scissorhands(budget=40, recent=4).plans(100, 21, 1)
    assert (plan.kept, plan.room, plan.goes_on) == (20, 20, True)


def test_drop_is_a_share_of_the_cache() -> None:
    assert [Scissorhands(drop=share).period(40) for share in (0.5, 0.25, 0.001)] == [20, 10, 1]
    assert Scissorhands(every=3).period(40) == 3
