"""SnapKV keeps what the last queries look at, with its neighbourhood, and the last queries' own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, best, run, window_scores
from pydantic import ValidationError

from bench.errors import Unsupported
from bench.families import cache as kv
from bench.models import Source, Sources
from techniques.kv_cache.core.scores import pooled
from techniques.kv_cache.snapkv import SnapKv

SOURCES = Sources(Source("tiny:llama"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "values", [{"window": 8}, {"window": 3, "kernel": 1}, {"window": 5, "kernel": 5, "pooling": "mean"}]
)
def test_what_the_window_looks_at_stays(name: str, values: dict[str, Any]) -> None:
    technique = SnapKv(budget=34, **values)
    made = run(technique, name, new=3)
    for layer, row, head in made.each():
        kept = best(window_scores(made, layer, row, head, technique), 34 - 12 - technique.window)
        # pooled scores are often equal: one neighbourhood's maximum is its neighbours' too
        got = made.held[0][layer][row][head]
        window = set(range(CONTEXT - technique.window, CONTEXT))
        assert window <= got
        assert len(got) == 34 - 12
        mine = window_scores(made, layer, row, head, technique)
        sums = [sum(float(mine[at]) for at in chosen) for chosen in (got - window, kept)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-5)
        if technique.kernel == 1:
            assert got - window == kept
        # what follows stays
        assert made.held[3][layer][row][head] == got | {CONTEXT, CONTEXT + 1, CONTEXT + 2}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("every", [1, 4, 5])
def test_it_goes_on_by_the_latest_queries(name: str, kernel: int, every: int) -> None:
    window = 3
    technique = SnapKv(budget=24, window=window, kernel=kernel, every=every)
    made = run(technique, name)
    kept = 24 - every
    for layer, row, head in made.each():
        expected = made.held[0][layer][row][head]
        assert len(expected) == kept
        for time, held in enumerate(made.held[1:], start=1):
            tokens = CONTEXT + time
            expected = expected | {tokens - 1}
            if time % every == 0:
                seen = sorted(expected)
                front = seen[:-window]
                assert seen[-window:] == list(range(tokens - window, tokens))
                received = torch.zeros(len(front), dtype=torch.float64)
                for at in seen[-window:]:
                    visible = [one for one in seen if one <= at]
                    received += made.weights(layer, row, head, at, visible).mean(0)[: len(front)]
                near = [received[max(at - kernel // 2, 0) : at + kernel // 2 + 1] for at in range(len(front))]
                # equal scores are many: of such the first of the text stay
                scores = torch.stack([part.max() for part in near])
                expected = {front[at] for at in best(scores, kept - window)} | set(seen[-window:])
            assert held[layer][row][head] == expected, (layer, row, head, time)


def test_the_queries_that_it_goes_on_by_are_counted() -> None:
    ready = SnapKv(budget=24, window=4).prepare(SOURCES)
    for every, queries in ((None, 0), (2, 4)):
        cache = SnapKv(budget=24, window=4, every=every).cache(ready, 2, CONTEXT, 12)
        with torch.inference_mode():
            kv.read(ready.model, IDS[:, :CONTEXT], cache)
        # 3 layers, 2 rows; 4 heads of queries, 2 of keys with 24 slots; 16 dimensions in float32, 4 bytes a position
        assert kv.held_bytes(cache) == 3 * 2 * (4 * queries * 16 * 4 + 2 * 24 * (2 * 16 * 4 + 4))


def test_pooling() -> None:
    row = torch.tensor([[[0.0, 3.0, 0.0, 0.0, 0.0, 6.0]]])
    assert pooled(row, 3, "max").tolist() == [[[3.0, 3.0, 3.0, 0.0, 6.0, 6.0]]]
    assert pooled(row, 3, "mean")[0, 0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 2.0, 2.0])


def test_the_papers_defaults() -> None:
    technique = SnapKv()
    assert (technique.window, technique.kernel, technique.pooling) == (32, 7, "max")


def test_bad_input_is_one_line() -> None:
    with pytest.raises(ValidationError, match="kernel=4 has no middle; give an odd number"):
        SnapKv(kernel=4)
    with pytest.raises(
        Unsupported, match=r"a window of 32 queries leaves nothing .* of 32 tokens; give a window of 31"
    ):
        SnapKv(ratio=1.0).plans(32, 8, 2)
    with pytest.raises(
        Unsupported, match=r"budget of 38 of 108 tokens leaves 30 beside 8 to come, and snapkv needs 33"
    ):
        SnapKv(budget=38).plans(100, 8, 2)
    assert SnapKv(budget=41).plans(100, 8, 1)[0].kept == 33
