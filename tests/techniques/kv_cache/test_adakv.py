"""Ada-KV moves budget between the heads of a layer, and frees what a head does not keep."""

from __future__ import annotations

import pytest
import torch
from evicted import CONTEXT, MODELS, run, window_scores

from bench.families import cache as kv
from techniques.kv_cache.adakv import AdaKv


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("safeguard", [0.0, 0.2, 1.0])
def test_heads_get_what_is_theirs_of_the_layers_best(name: str, safeguard: float) -> None:
    technique = AdaKv(budget=34, window=4, kernel=1, safeguard=safeguard)
    made = run(technique, name, new=0)
    heads = made.keys[0].shape[1]
    mean = 34 - 12 - 4
    for layer in range(3):
        for row in range(2):
            mine = [window_scores(made, layer, row, head, technique) for head in range(heads)]
            pool = sorted(((float(s), head) for head, part in enumerate(mine) for s in part), reverse=True)
            counts = [sum(head == owner for _, owner in pool[: mean * heads]) for head in range(heads)]
            shares = [(1 - safeguard) * count + safeguard * mean for count in counts]
            got = [held - set(range(CONTEXT - 4, CONTEXT)) for held in made.held[0][layer][row]]
            assert sum(map(len, got)) == mean * heads
            for head in range(heads):
                assert abs(len(got[head]) - shares[head]) < 1
                assert got[head] == set(mine[head].topk(len(got[head])).indices.tolist())
                assert len(made.held[0][layer][row][head]) == len(got[head]) + 4


def test_shares_are_rounded_to_the_whole() -> None:
    importance = torch.zeros(1, 3, 13)
    importance[0, 0, :7] = torch.arange(10.0, 17.0)
    importance[0, 1, :3] = torch.arange(5.0, 8.0)
    importance[0, 2, :2] = torch.arange(1.0, 3.0)
    technique = AdaKv(window=1)
    # of 12 in the pool heads own 7, 3 and 2: .8 of it and .2 * 4 are 6.4, 3.2 and 2.4
    assert technique.of_heads(importance, 5).tolist() == [[6 + 1 + 1, 3 + 1, 2 + 1]]
    assert AdaKv(window=1, safeguard=1.0).of_heads(importance, 5).tolist() == [[5, 5, 5]]
    assert AdaKv(window=1, safeguard=0.0).of_heads(importance, 5).tolist() == [[8, 4, 3]]


def test_storage_is_ragged_and_no_larger() -> None:
    made = run(AdaKv(budget=34, window=4, safeguard=0.0), new=3)
    lengths = {len(head) for layer in made.held[0] for row in layer for head in row}
    assert len(lengths) > 2
    # 3 layers, 2 rows, 2 heads, 34 slots of keys, values (16 dimensions, float32) and a position
    assert kv.held_bytes(made.cache) == 3 * 2 * 2 * 34 * (2 * 16 * 4 + 4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("every", [1, 4, 5])
def test_shares_are_drawn_anew_while_decoding(name: str, every: int) -> None:
    window, safeguard = 3, 0.2
    technique = AdaKv(budget=24, window=window, kernel=1, safeguard=safeguard, every=every)
    made = run(technique, name)
    heads, mean = made.keys[0].shape[1], 24 - every - window
    moved = 0
    for layer in range(3):
        for row in range(2):
            now = [set(head) for head in made.held[0][layer][row]]
            assert sum(map(len, now)) == (mean + window) * heads
            for time, held in enumerate(made.held[1:], start=1):
                tokens = CONTEXT + time
                now = [head | {tokens - 1} for head in now]
                if time % every == 0:
                    mine: list[dict[int, float]] = []
                    for head, own in enumerate(now):
                        front = sorted(own)[:-window]
                        received = torch.zeros(len(front), dtype=torch.float64)
                        for at in range(tokens - window, tokens):
                            visible = [one for one in sorted(own) if one <= at]
                            received += made.weights(layer, row, head, at, visible).mean(0)[: len(front)]
                        mine.append(dict(zip(front, received.tolist(), strict=True)))
                    pool = sorted(((score, head) for head, own in enumerate(mine) for score in own.values()))[::-1]
                    shares = [
                        (1 - safeguard) * sum(head == one for _, one in pool[: mean * heads]) + safeguard * mean
                        for head in range(heads)
                    ]
                    lacking = any(len(own) < share for own, share in zip(mine, shares, strict=True))
                    for head, own in enumerate(mine):
                        got = held[layer][row][head] - set(range(tokens - window, tokens))
                        assert lacking or abs(len(got) - shares[head]) < 1
                        assert got == set(sorted(own, key=lambda at: -own[at])[: len(got)])
                        moved += len(got) != len(now[head]) - every - window
                    assert sum(map(len, held[layer][row])) == (mean + window) * heads
                    now = [set(head) for head in held[layer][row]]
                assert now == held[layer][row]
    assert moved or heads == 1, "no share changed"


def test_storage_stays_the_budgets_while_shares_move() -> None:
    technique = AdaKv(budget=34, window=4, safeguard=0.0, every=2)
    made = run(technique)
    # as behind the prompt, and the four latest queries of 4 heads
    assert kv.held_bytes(made.cache) <= 3 * 2 * (2 * 34 * (2 * 16 * 4 + 4) + 4 * 4 * 16 * 4)
