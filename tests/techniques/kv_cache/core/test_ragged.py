"""Ragged storage: each head holds its own tokens, appending moves nothing, letting go moves the last into the holes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from techniques.kv_cache.core.attending import LINK
from techniques.kv_cache.core.ragged import RaggedLayer

ROWS, HEADS, GROUP, WIDTH = 2, 3, 2, 4
Held = list[list[list[int]]]


class Chosen(RaggedLayer):
    """Keeps of the prompt what it is told."""

    def __init__(self, kept: Held, rooms: Any = 6, watching: bool = False) -> None:
        super().__init__()
        self.kept = kept
        self.rooms = torch.as_tensor(rooms).expand(ROWS, HEADS)
        self.watching = watching
        self.heard: list[tuple[tuple[int, ...], Tensor]] = []

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        index = [[torch.tensor(head, dtype=torch.int64) for head in row] for row in self.kept]
        note = keys[..., 0] * 10
        self.store(keys, values, index, self.rooms, {"note": note})

    def watch(self, weights: Tensor, notes: Any) -> None:
        self.heard.append((tuple(weights.shape), notes["note"]))
        assert weights.shape[-1] == notes["note"].shape[-1]
        assert (weights.sum(-1) - 1).abs().max() < 1e-5


def states(first: int, count: int) -> Tensor:
    """Keys `(ROWS, HEADS, count, WIDTH)` that tell row, head and position: 100 row + 1000 head + position."""
    place = torch.arange(first, first + count).float()
    owner = 100.0 * torch.arange(ROWS)[:, None] + 1000.0 * torch.arange(HEADS)[None]
    return (owner[..., None] + place)[..., None] + torch.tensor([0.0, 0.1, 0.2, 0.3])


EVEN: Held = [[[0, 1, 5], [2, 3, 9], [7, 8, 9]], [[0, 4, 5], [2, 3, 8], [1, 2, 3]]]
UNEVEN: Held = [[[0, 1, 5, 7, 9], [3], [7, 8, 9]], [[], [2, 3, 8, 9], list(range(10))]]


def layer(kept: Held, **values: Any) -> Chosen:
    made = Chosen(kept, **values)
    keys, given = made.update(states(0, 10), -states(0, 10))
    assert getattr(keys, LINK) is made
    assert not hasattr(given, LINK)
    made.read_prompt(states(0, 10), keys, given, 1.0)
    return made


def check(made: Chosen, expected: Held) -> None:
    """Every head holds these tokens: by its word, and by its storage."""
    said = made.positions()
    most = max(len(head) for row in expected for head in row)
    assert said.shape == (ROWS, HEADS, most)
    for row in range(ROWS):
        for head in range(HEADS):
            held = [at for at in said[row, head].tolist() if at >= 0]
            assert sorted(held) == sorted(expected[row][head])
            there = made.segment(row, head)
            owner = 100 * row + 1000 * head
            assert made.keys[there, 0].tolist() == [owner + at for at in held]
            assert torch.equal(made.keys[there], -made.values[there])


@pytest.mark.parametrize("kept", [EVEN, UNEVEN])
def test_holds_what_is_kept_and_no_more(kept: Held) -> None:
    made = layer(kept, rooms=2)
    check(made, kept)
    count = sum(len(head) for row in kept for head in row)
    assert len(made.keys) == len(made.values) == count + 2 * ROWS * HEADS
    assert (made.level is not None) == (kept is EVEN)
    assert {name: len(column) for name, column in made.columns.items()} == dict.fromkeys(
        ("places", "note"), len(made.keys)
    )
    assert sum(t.untyped_storage().nbytes() for t in made.held()) == len(made.keys) * (2 * WIDTH * 4 + 4 + 4)


@pytest.mark.parametrize("kept", [EVEN, UNEVEN])
def test_appending_moves_nothing(kept: Held) -> None:
    made = layer(kept)
    pointers = [t.data_ptr() for t in made.held()]
    before = [made.keys[made.segment(row, head)].clone() for row in range(ROWS) for head in range(HEADS)]
    for at in range(10, 16):
        key, value = made.update(states(at, 1), -states(at, 1))
        assert getattr(key, LINK) is made
        assert value.shape[-2] == 1
        check(made, [[[*head, *range(10, at + 1)] for head in row] for row in kept])
        assert made.get_seq_length() == at + 1
    assert [t.data_ptr() for t in made.held()] == pointers
    after = [made.keys[made.segment(row, head)] for row in range(ROWS) for head in range(HEADS)]
    assert all(torch.equal(old, new[: len(old)]) for old, new in zip(before, after, strict=True))
    with pytest.raises(AssertionError, match="a segment is full"):
        made.update(states(16, 1), -states(16, 1))


@pytest.mark.parametrize("kept", [EVEN, UNEVEN])
@pytest.mark.parametrize("seed", range(5))
def test_letting_go_keeps_the_others_with_their_notes(kept: Held, seed: int) -> None:
    made = layer(kept)
    for at in range(10, 13):
        made.update(states(at, 1), -states(at, 1))
    torch.manual_seed(seed)
    stays = (torch.rand(made.positions().shape) < 0.6) & made.filled()
    expected = [
        [made.positions()[row, head][stays[row, head]].tolist() for head in range(HEADS)] for row in range(ROWS)
    ]
    made.columns["note"] = made.keys[:, 0] * 3 + 1
    made.keep(stays)
    check(made, expected)
    filled = made.filled()
    assert torch.equal(made.padded(made.columns["note"])[filled], (made.padded(made.keys)[..., 0] * 3 + 1)[filled])
    made.update(states(13, 1), -states(13, 1))
    check(made, [[[*head, 13] for head in row] for row in expected])


def test_regrowing_keeps_everything() -> None:
    made = layer(UNEVEN, rooms=1)
    made.update(states(10, 1), -states(10, 1))
    rooms = torch.tensor([[1, 2, 3], [4, 5, 6]])
    made.regrow(rooms)
    expected = [[[*head, 10] for head in row] for row in UNEVEN]
    check(made, expected)
    assert len(made.keys) == sum(len(head) for row in expected for head in row) + int(rooms.sum())
    made.update(states(11, 1), -states(11, 1))
    check(made, [[[*head, 11] for head in row] for row in expected])


@pytest.mark.parametrize(("kept", "watching"), [(EVEN, False), (EVEN, True), (UNEVEN, False)])
def test_each_group_attends_to_its_own_head(kept: Held, watching: bool) -> None:
    torch.manual_seed(1)
    keys, values = torch.randn(2, ROWS, HEADS, 11, WIDTH).unbind()
    made = Chosen(kept, watching=watching)
    made.update(keys[:, :, :10], values[:, :, :10])
    made.read_prompt(keys, keys[:, :, :10], values[:, :, :10], 1.0)
    made.update(keys[:, :, 10:], values[:, :, 10:])
    query = torch.randn(ROWS, HEADS * GROUP, 1, WIDTH)
    out = made.read_token(None, query, 0.5)
    assert out.shape == (ROWS, 1, HEADS * GROUP, WIDTH)
    for row in range(ROWS):
        for head in range(HEADS * GROUP):
            own = head // GROUP
            held = [*kept[row][own], 10]
            weights = (keys[row, own, held] @ query[row, head, 0] * 0.5).softmax(0)
            assert (weights @ values[row, own, held] - out[row, 0, head]).abs().max() < 1e-5
    assert [shape for shape, _ in made.heard] == ([(ROWS, HEADS, GROUP, 4)] if watching else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1024, 1025, 1500), (1400, 1300, 451), (1500, 1500, 2), (1500, 1500, 1)])
def test_long_segments_are_attended_to_by_halves(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys, values = (torch.randn(ROWS, HEADS, 1500, WIDTH).to(dtype) for _ in range(2))
    made = Chosen([[list(range(length)) for length in lengths] for _ in range(ROWS)], rooms=[0, 1, 2])
    _, given = made.update(keys, values)
    made.read_prompt(keys, keys, given, 1.0)
    query = torch.randn(ROWS, HEADS * GROUP, 1, WIDTH).to(dtype)
    found = made.attend(None, query, 0.7)
    assert found.dtype == dtype
    for head, length in enumerate(lengths):
        own = query.unflatten(1, (HEADS, GROUP))[:, head, :, 0].float()  # (rows, group, width)
        weights = (own @ keys[:, head, :length].float().mT * 0.7).softmax(-1)
        expected = weights @ values[:, head, :length].float()
        got = found[:, 0].unflatten(1, (HEADS, GROUP))[:, head].float()
        assert (got - expected).abs().max() < (1e-6 if dtype == torch.float32 else 8e-3)


def test_watched_notes_are_the_storage() -> None:
    made = layer(EVEN, watching=True)
    made.update(states(10, 1), -states(10, 1))
    made.read_token(None, torch.zeros(ROWS, HEADS * GROUP, 1, WIDTH), 1.0)
    for _, note in made.heard:
        note += 1e6
    assert int((made.columns["note"] > 1e5).sum()) == int(made.lengths.sum())


def test_heads_that_hold_different_numbers_are_not_watched() -> None:
    made = layer(UNEVEN, watching=True)
    made.update(states(10, 1), -states(10, 1))
    with pytest.raises(AssertionError, match="are not watched"):
        made.read_token(None, torch.zeros(ROWS, HEADS * GROUP, 1, WIDTH), 1.0)


def test_several_tokens_behind_the_prompt_are_refused() -> None:
    with pytest.raises(AssertionError, match="2 tokens at once behind the prompt"):
        layer(EVEN).update(states(10, 2), states(10, 2))
