"""Data files of the user's: texts and prompts, in plain text or as records. Malformed ones are named.

Records are lines of JSON, one list of it, or the rows of a parquet file. A file may lie on a hub (`bench.hub_file`).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench import hub_file
from bench.errors import UsageError

DOCUMENT_CHARACTERS = 4000
"""Paragraphs of a plain text are joined up to about this length."""
TEXT_FIELDS = ("text", "content", "question", "prompt")
PROMPT_FIELDS = ("prompt", "question", "instruction", "turns", "text")
RECORDS = (".jsonl", ".json", ".jsonl.gz", ".parquet")
"""Endings of files that hold one record a line or row."""
SHOWN_PROBLEMS = 5
"""Malformed lines that a message names one by one."""

FORMATS: Mapping[str, tuple[str, ...]] = {
    "Spec-Bench, MT-bench": ("question_id", "category", "turns"),
    "HumanEval": ("task_id", "prompt", "canonical_solution"),
    "GSM8K": ("question", "answer"),
}
"""Published format -> the fields of its lines, by which it is known."""
CATEGORIES: Mapping[str, str] = {
    "writing": "conversation",
    "roleplay": "conversation",
    "reasoning": "conversation",
    "math": "conversation",
    "coding": "conversation",
    "extraction": "conversation",
    "stem": "conversation",
    "humanities": "conversation",
    "translation": "translation",
    "summarization": "summarisation",
    "qa": "question_answering",
    "math_reasoning": "mathematics",
    "rag": "retrieval",
}
"""Spec-Bench's names of its thirteen kinds of questions -> its six categories; the first eight are MT-bench's."""

GSM8K_RESULT = "\n#### "
"""Stands before the number at the end of GSM8K's answers."""

T = TypeVar("T")
Line = tuple[int, Any]
"""Number of a line, and what it holds: a mapping, or the ValueError that says why it holds none."""


@dataclass(frozen=True)
class Prompt:
    """What a user asks, and what is known about it."""

    turns: tuple[str, ...]
    """What the user says, turn by turn."""
    category: str = ""
    """Kind of the task; empty where the file says nothing."""
    answer: str | None = None
    """The published solution: GSM8K's worked answer, the body of HumanEval's function."""


def read_documents(path: Path) -> list[str]:
    """The documents of a file: one per line of JSON (field `text`), or a plain text's paragraphs, joined.

    Raises:
        UsageError: the file is missing, empty or malformed, with the lines.
    """
    path = hub_file.local(path)
    if path.name.endswith(RECORDS):
        return each_line(path, records(path), lambda data: _text(data, _present(data, TEXT_FIELDS)))
    documents: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _read(path)):
        if not paragraph.strip():
            continue
        if documents and len(documents[-1]) + len(paragraph) < DOCUMENT_CHARACTERS:
            documents[-1] += "\n\n" + paragraph.strip()
        else:
            documents.append(paragraph.strip())
    return documents


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    A file of JSON lines (`.jsonl`, `.jsonl.gz`) is in a published format if half of its lines have that format's
    fields: Spec-Bench's and MT-bench's questions, GSM8K, HumanEval. Then every line must have them. Else a line's
    prompt is its first field of `prompt`, `question`, `instruction`, `turns` (a list), `text`; `category` may stand
    beside it. Any other file is plain text, one prompt per line.

    Raises:
        UsageError: the file is missing, empty or malformed, with the lines.
    """
    path = hub_file.local(path)
    if not path.name.endswith(RECORDS):
        return [Prompt((line.strip(),)) for line in _read(path).split("\n") if line.strip()]
    lines = records(path)
    name = _format([data for _, data in lines if isinstance(data, dict)])

    def prompt(data: dict[str, Any]) -> Prompt:
        for field in FORMATS.get(name, ()):
            if field not in data:
                raise ValueError(f"no {field!r}, which lines of this format ({name}) have; there is {_shown(data)}")
        category = _text(data, "category") if "category" in data else ""
        if name == "GSM8K":
            answer = _text(data, "answer")
            # questions and answers about anything have the same fields
            kind = "mathematics" if GSM8K_RESULT in answer else ""
            return Prompt((_text(data, "question"),), category or kind, answer)
        if name == "HumanEval":
            return Prompt((_text(data, "prompt"),), category or "code", _text(data, "canonical_solution"))
        if name:
            return Prompt(_turns(data), CATEGORIES.get(category, category))
        field = _present(data, PROMPT_FIELDS)
        return Prompt(_turns(data) if field == "turns" else (_text(data, field),), category)

    return each_line(path, lines, prompt)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"data file {path}: no complete gzip file ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no UTF-8 text ({error.reason})"
        raise UsageError(f"data file {path}: {reason}") from error
    if not text.strip():
        raise UsageError(f"data file {path} is empty")
    return text


def records(path: Path) -> list[Line]:
    """Every line that is not blank, of a file of JSON lines; every element of a `.json` that is one list; every row.

    Raises:
        UsageError: the file is missing or empty, or it is parquet and pyarrow is not there.
    """
    path = hub_file.local(path)
    if path.suffix == ".parquet":
        return _rows(path)
    text = _read(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        whole = _parsed(text)
        if isinstance(whole, list):
            return [(number, _object(element)) for number, element in enumerate(whole, 1)]
    lines = enumerate(text.split("\n"), 1)
    return [(number, _object(_parsed(line))) for number, line in lines if line.strip()]


def _rows(path: Path) -> list[Line]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"data file {path}: parquet needs pyarrow; install it, or give lines of JSON") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise UsageError(f"data file {path}: no parquet file ({str(error).splitlines()[0]})") from error
    if not rows:
        raise UsageError(f"data file {path} is empty")
    return list(enumerate(rows, 1))


def _parsed(text: str) -> Any:
    """What a text of JSON holds, or the ValueError that says why it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return ValueError(f"no JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        return ValueError(f"no JSON that can be read ({error})")


def _object(data: Any) -> dict[str, Any] | ValueError:
    if isinstance(data, dict | ValueError):
        return data
    return ValueError(f"a {type(data).__name__} instead of an object")


def _format(lines: list[dict[str, Any]]) -> str:
    """The published format of most lines; empty if there is none."""
    for name, fields in FORMATS.items():
        if lines and 2 * sum(all(field in line for field in fields) for line in lines) >= len(lines):
            return name
    return ""


def each_line(path: Path, lines: Iterable[Line], read: Callable[[dict[str, Any]], T]) -> list[T]:
    """What `read` makes of every line; it raises ValueError for a malformed one, and all of them are named."""
    found, problems = [], []
    for number, data in lines:
        try:
            if isinstance(data, ValueError):
                raise data
            found.append(read(data))
        except ValueError as problem:
            problems.append(f"{path}, line {number}: {problem}")
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + [f"{path}: {more} more lines are malformed"] * (more > 0)
        raise UsageError("\n".join([*shown, f"{path}: correct these lines or take them out"]))
    return found


def _present(data: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in data:
            return name
    raise ValueError(f"no text under any of {', '.join(names)}; there is {_shown(data)}")


def _text(data: dict[str, Any], name: str) -> str:
    return text_of(data[name], name)


def _turns(data: dict[str, Any]) -> tuple[str, ...]:
    turns = data["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'turns' is {_kind(turns)}, a list of texts is expected")
    return tuple(text_of(turn, f"turns[{index}]") for index, turn in enumerate(turns))


def text_of(value: Any, name: str) -> str:
    """A field's text.

    Raises:
        ValueError: it is none, or empty.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {_kind(value)}, a text is expected")
    if not value.strip():
        raise ValueError(f"{name!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is no Unicode text (half a character at {error.start})") from error
    return value


def _kind(value: Any) -> str:
    if value == []:
        return "an empty list"
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(data: dict[str, Any]) -> str:
    return ", ".join(data) or "nothing"
