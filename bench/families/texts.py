"""Texts as rows of a batch: which of their tokens are learnt, padded or packed.

A text is a prompt and what is learnt behind it. A row holds one text, or several end to end; behind the last one it is
padded. In a packed row every text attends to itself alone and counts its positions from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from bench.errors import UsageError

IGNORED = -100
"""The label of a token that is no target."""
PAD = 0
"""Any id does: no token attends to what comes behind it, and padding is no target."""


class Text(TypedDict):
    """One text, as JSON holds it."""

    ids: list[int]
    prompt: int
    """How many ids at the beginning are given and not learnt [tokens]."""


class TextBatch(NamedTuple):
    """What one optimiser step is trained on."""

    ids: Tensor
    """`(batch, seq)`, int64."""
    labels: Tensor
    """`(batch, seq)`: the ids themselves, `IGNORED` where a token is no target. The loss shifts them."""
    tokens: int
    """Targets: labels behind the first column that are not ignored [tokens]."""
    positions: Tensor | None = None
    """`(batch, seq)`: place of each token within its own text; None where every row is one text."""


def whole(ids: Iterable[list[int]]) -> list[Text]:
    """Texts that are learnt from their second token on: nothing predicts the first."""
    return [Text(ids=row, prompt=0) for row in ids]


def targets(text: Text) -> int:
    """Tokens of a text that are learnt: those behind its prompt, never its first one [tokens]."""
    return len(text["ids"]) - max(text["prompt"], 1)


def padded_left(rows: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Rows of ids that end together, `(batch, longest)`, and how many ids in front of each are none, `(batch,)`."""
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    ids = [[PAD] * pad + [*row] for pad, row in zip(padding, rows, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(padding, device=device)


def collate(rows: Sequence[Sequence[Text]], device: str, length: int = 0) -> TextBatch:
    """Rows of texts end to end, padded on the right.

    Args:
        length: of every row; that of the longest row if 0 [tokens].

    Raises:
        UsageError: there is no token to learn in any of them.
    """
    length = length or max(sum(len(text["ids"]) for text in row) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(text["ids"])
            ids[number, start:end] = torch.tensor(text["ids"])
            # the first token of a text is not predicted from the end of the text before it
            first = start + max(text["prompt"], 1)
            labels[number, first:end] = ids[number, first:end]
            positions[number, start:end] = torch.arange(end - start)
            start = end
        positions[number, start:] = torch.arange(length - start)
    tokens = int((labels[:, 1:] != IGNORED).sum())
    if not tokens:
        raise UsageError("a batch has no token to learn: give texts with an answer of at least one token")
    packed = any(len(row) > 1 for row in rows)
    return TextBatch(ids.to(device), labels.to(device), tokens, positions.to(device) if packed else None)


def packed(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Numbers of the texts that share a row, the longest first, each put where the least room is left (best fit).

    Args:
        lengths: of the texts, none longer than a row [tokens].
        length: of a row [tokens].
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[number]]
        if fitting:
            row = min(fitting, key=lambda row: room[row])
            rows[row].append(number)
            room[row] -= lengths[number]
        else:
            rows.append([number])
            room.append(length - lengths[number])
    return rows
