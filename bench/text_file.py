"""Data files of the user's: texts and prompts, in plain text or as lines of JSON. Malformed lines are named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import UsageError

DOCUMENT_CHARACTERS = 4000
"""Paragraphs of a plain text are joined up to about this length."""
TEXT_FIELDS = ("text", "content", "question", "prompt")
PROMPT_FIELDS = ("prompt", "question", "instruction", "turns", "text")


def read_documents(path: Path) -> list[str]:
    """The documents of a file: one per line of JSON (field `text`), or a plain text's paragraphs, joined.

    Raises:
        UsageError: the file is missing, empty or malformed, with the line.
    """
    if path.suffix == ".jsonl":
        return [_field(path, number, line, TEXT_FIELDS) for number, line in _json_lines(path)]
    documents: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _read(path)):
        if not paragraph.strip():
            continue
        if documents and len(documents[-1]) + len(paragraph) < DOCUMENT_CHARACTERS:
            documents[-1] += "\n\n" + paragraph.strip()
        else:
            documents.append(paragraph.strip())
    return documents


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one per line of JSON (`prompt`, `question`, `instruction`, the first of `turns`, `text`),
    else one per line of text.

    Raises:
        UsageError: the file is missing, empty or malformed, with the line.
    """
    if path.suffix == ".jsonl":
        return [_field(path, number, line, PROMPT_FIELDS) for number, line in _json_lines(path)]
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no UTF-8 text ({error.reason})"
        raise UsageError(f"data file {path}: {reason}") from error
    if not text.strip():
        raise UsageError(f"data file {path} is empty")
    return text


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number}: no JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(data, dict):
            raise UsageError(f"{path}, line {number}: a {type(data).__name__} instead of an object")
        yield number, data


def _field(path: Path, number: int, data: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = data.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return value
    raise UsageError(
        f"{path}, line {number}: no text under any of {', '.join(names)}; there is {', '.join(data) or 'nothing'}"
    )
