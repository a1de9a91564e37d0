"""Attention weights in blocks are those of the whole map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from techniques.kv_cache.core import scores
from techniques.kv_cache.core.scores import Seen


def seen(tokens: int, new: int | None = None) -> Seen:
    torch.manual_seed(0)
    keys = torch.randn(2, 3, tokens, 8)
    query = torch.randn(2, 6, tokens if new is None else new, 8)
    return Seen(0, tokens, 1, query, keys, keys, torch.arange(tokens).expand(2, 3, -1), 0.7)


def plain(given: Seen) -> Tensor:
    """The whole map `(batch, heads, new, held)`, keys repeated for each query head."""
    keys = given.keys.repeat_interleave(2, 1)
    products = given.query @ keys.transpose(-1, -2) * 0.7
    new, held = products.shape[-2:]
    hidden = torch.ones(new, held, dtype=torch.bool).triu(held - new + 1)
    return products.masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.mark.parametrize("last", [None, 1, 5, 64, 150, 1000])
def test_columns_are_summed_over_the_last_rows(last: int | None) -> None:
    given = seen(150)
    rows = plain(given)[:, :, -(last or 150) :].sum(2)
    received = given.received(last)
    assert received.shape == (2, 3, 2, 150)
    assert (received.flatten(1, 2) - rows).abs().max() < 1e-5


def test_one_new_token_sees_everything() -> None:
    given = seen(40, new=1)
    assert (given.received().flatten(1, 2) - plain(given)[:, :, 0]).abs().max() < 1e-6


def test_no_block_is_larger_than_it_may_be() -> None:
    shapes = [weights.shape for weights in seen(150).weights()]
    assert [shape[-2] for shape in shapes] == [32, 32, 32, 32, 22]
    assert [shape[-1] for shape in shapes] == [32, 64, 96, 128, 150]
    assert scores.BLOCK == 32


def test_recent_tokens_are_the_last_of_the_text() -> None:
    given = seen(6)
    assert given.recent(2)[0, 0].tolist() == [False] * 4 + [True] * 2
    moved = Seen(0, 9, 1, given.query, given.keys, given.values, torch.tensor([[[0, 8, 3, 7, 1, 6]]]), 1.0)
    assert moved.recent(2).tolist() == [[[False, True, False, True, False, False]]]
