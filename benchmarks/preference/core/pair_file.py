"""Files of preference pairs in the published formats, as lines of JSON. Malformed lines are named.

hh-rlhf                 {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}
UltraFeedback           {"prompt": "...", "chosen": [{"role": "user", "content": "..."}, {...}], "rejected": [...]}
TRL, conversational     the same without prompt, or {"prompt": [...], "chosen": [...], "rejected": [...]}
TRL, plain              {"prompt": "...", "chosen": "...", "rejected": "..."}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.conversation import SPEAKERS, Turn, messages
from bench.text_file import each_line, records, text_of

_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class TextPair:
    """One prompt and its two answers."""

    turns: tuple[Turn, ...]
    """The conversation so far; none where the prompt is plain text."""
    prompt: str
    """The plain text; empty where the prompt is a conversation."""
    chosen: str
    rejected: str
    line: int = field(default=0, compare=False)
    """Of the file that it stands in, from 1 on."""


@dataclass(frozen=True)
class PairFile:
    """What a file holds."""

    pairs: tuple[TextPair, ...]
    left_out: int
    """Lines whose two answers cannot be compared: one is empty, both are the same, or they answer different things."""


class Unusable(ValueError):
    """A line of the right form whose two answers cannot be compared."""


def read_pairs(path: Path, skip: bool) -> PairFile:
    """The pairs of a file, in its order.

    Args:
        skip: leave out lines whose answers cannot be compared; else they are malformed too.

    Raises:
        UsageError: the file is missing, empty or malformed, with the lines.
    """

    def read(data: dict[str, Any]) -> TextPair | None:
        try:
            return parse(data)
        except Unusable as reason:
            if skip:
                return None
            raise Unusable(f"{reason} (skip=true leaves such lines out)") from reason

    lines = records(path)
    found = each_line(path, lines, read)
    pairs = tuple(replace(pair, line=line) for (line, _), pair in zip(lines, found, strict=True) if pair is not None)
    return PairFile(pairs, len(found) - len(pairs))


def parse(data: Mapping[str, Any]) -> TextPair:
    """One line's pair.

    Raises:
        ValueError: it is malformed.
        Unusable: its two answers cannot be compared.
    """
    for side in ("chosen", "rejected"):
        if side not in data:
            raise ValueError(f"no {side!r}; there is {', '.join(data) or 'nothing'}")
    chosen, rejected, prompt = data["chosen"], data["rejected"], data.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _compared(*_transcripts(chosen, rejected))
        return _compared((), text_of(prompt, "prompt"), chosen, rejected)
    sides = [messages(data[side], side) for side in ("chosen", "rejected")]
    before = list(messages(prompt, "prompt")) if isinstance(prompt, list) else []
    (*first, (role, answer)), (*second, (other_role, other)) = sides
    if (role, other_role) != ("assistant", "assistant"):
        raise ValueError("the last message of 'chosen' and of 'rejected' must be the assistant's")
    if first != second:
        raise ValueError("'chosen' and 'rejected' differ before their last message")
    # some files repeat the prompt before either answer
    turns = tuple(first if first[: len(before)] == before else before + first)
    if not turns and isinstance(prompt, str):
        turns = (("user", text_of(prompt, "prompt")),)
    if not turns or turns[-1][0] != "user":
        raise ValueError("the message before the two answers must be the user's")
    return _compared(turns, "", answer, other)


def _compared(turns: tuple[Turn, ...], prompt: str, chosen: str, rejected: str) -> TextPair:
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise Unusable(f"the answer in {side!r} is empty")
        text_of(text, side)
    if chosen.strip() == rejected.strip():
        raise Unusable("'chosen' and 'rejected' are the same")
    return TextPair(turns, prompt, chosen, rejected)


def _transcripts(chosen: str, rejected: str) -> tuple[tuple[Turn, ...], str, str, str]:
    """hh-rlhf's transcripts -> the conversation they share, no plain prompt, and the two answers."""
    split = []
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        context, marker, answer = text.rpartition(_ASSISTANT)
        if not marker:
            raise ValueError(f"{side!r} is a text without '\\n\\nAssistant:', and there is no 'prompt'")
        split.append((context, answer.strip()))
    (context, answer), (other_context, other) = split
    if context != other_context:
        raise Unusable("'chosen' and 'rejected' differ before their last answer")
    before, *said = re.split(r"\n\n(Human|Assistant):", context)
    if before.strip():
        raise Unusable("there is text before the first '\\n\\nHuman:'")
    roles = {speaker: role for role, speaker in SPEAKERS.items()}
    turns = tuple((roles[who], what.strip()) for who, what in zip(said[::2], said[1::2], strict=True))
    if not turns:
        raise ValueError("no '\\n\\nHuman:' before the answer")
    if turns[-1][0] != "user":
        raise Unusable("the turn before the two answers is not the user's")
    return turns, "", answer, other
