"""What becomes of written texts: those that loop are left out, and overlap with evaluation prompts is counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

GRAM = 4
LOOPING = 0.3
"""A text with more than this share of repeated 4-grams goes in circles: it would flatter every drafter."""
SHARED_WORDS = 8
"""So many words in a row that two prompts share are an overlap."""


def repeated(ids: Sequence[int]) -> float:
    """Share of a text's 4-grams that stood in it before."""
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def looping(ids: Sequence[int]) -> bool:
    return repeated(ids) > LOOPING


def grams(text: str, length: int = SHARED_WORDS) -> set[tuple[str, ...]]:
    """The word sequences of a text, lower case, punctuation apart."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def asked(chat: str) -> list[str]:
    """What the user says in a rendered chat, a text per turn; a text that is no chat is said by the user."""
    turns = re.findall(r"<\|im_start\|>user\n(.*?)(?:<\|im_end\|>|$)", chat, re.DOTALL)
    return turns or [chat]


@dataclass(frozen=True)
class Evaluation:
    """The prompts that drafts are judged on, which training must not read."""

    prompts: dict[str, list[str]]
    """Name of the workload -> its prompts."""

    @cached_property
    def grams(self) -> set[tuple[str, ...]]:
        return {gram for found in self.prompts.values() for text in found for gram in grams(text)}

    def shares(self, text: str) -> bool:
        """Whether a text has a word sequence with any of them in common."""
        return not self.grams.isdisjoint(grams(text))

    def overlap(self, training: Iterable[str]) -> dict[str, dict[str, int]]:
        """Per workload: its prompts, and how many of them share a word sequence with a training text."""
        seen = {gram for text in training for gram in grams(text)} & self.grams
        return {
            name: {"prompts": len(found), "overlapping": sum(not seen.isdisjoint(grams(text)) for text in found)}
            for name, found in self.prompts.items()
        }
