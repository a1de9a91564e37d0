"""Instruction sets in the usual formats, as lines of JSON or one list of it. Malformed ones are named.

chat                    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
Alpaca                  {"instruction": "...", "input": "...", "output": "..."}; input may be empty or missing
GSM8K                   {"question": "...", "answer": "... #### 72"}
prompt and completion   {"prompt": "...", "completion": "..."}
plain text              {"text": "..."}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import conversation, hub_file
from bench.conversation import Turn
from bench.text_file import RECORDS, each_line, read_documents, records, text_of

FORMATS = (
    ("messages",),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("text",),
)
"""Fields of each format; a line is of the first one that it has whole."""
RESULT = "####"
"""Stands before the number at the end of an answer, as in GSM8K."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Example:
    """One text to learn."""

    answer: str
    """What is learnt."""
    prompt: str = ""
    """What stands before it where no chat template is applied; empty: all of the text is learnt."""
    turns: tuple[Turn, ...] = ()
    """The conversation before the answer; none where a prompt is taken as it is written."""

    @property
    def number(self) -> float | None:
        """The published result, where the answer to a prompt ends in one."""
        _, marker, behind = self.answer.rpartition(RESULT)
        return last_number(behind) if marker and self.prompt else None

    @property
    def text(self) -> str:
        """All of it, for who compares texts."""
        said = "\n".join(content for _, content in self.turns) or self.prompt
        return f"{said}\n{self.answer}"


def read_examples(path: Path) -> list[Example]:
    """The examples of a file, in its order; a file that is no JSON is plain text, learnt as a whole.

    Raises:
        UsageError: the file is missing, empty or malformed, with the lines.
    """
    path = hub_file.local(path)
    if path.name.endswith(RECORDS):
        return each_line(path, records(path), parse)
    return [Example(document) for document in read_documents(path)]


def parse(data: Mapping[str, Any]) -> Example:
    """One line's example.

    Raises:
        ValueError: it is malformed.
    """
    form = next((fields for fields in FORMATS if all(field in data for field in fields)), None)
    if form is None:
        known = "; ".join(", ".join(fields) for fields in FORMATS)
        raise ValueError(f"it has the fields of no known format ({known}); there is {', '.join(data) or 'nothing'}")
    if form == ("messages",):
        return _conversation(data["messages"])
    *before, last = (text_of(data[field], field) for field in form)
    if form == ("text",):
        return Example(last)
    if form == ("prompt", "completion"):
        return Example(last, before[0])
    if form == ("question", "answer"):
        return Example(last, f"Question: {before[0]}\nAnswer:", (("user", before[0]),))
    more = data.get("input") or ""
    if not isinstance(more, str):
        raise ValueError("'input' is no text")
    asked = f"{before[0]}\n\n{more}" if more.strip() else before[0]
    inputs = f"### Input:\n{more}\n\n" if more.strip() else ""
    return Example(last, f"### Instruction:\n{before[0]}\n\n{inputs}### Response:", (("user", asked),))


def _conversation(messages: Any) -> Example:
    """The last message is learnt; it must be the assistant's."""
    turns = conversation.messages(messages, "messages")
    if len(turns) < 2:
        raise ValueError("'messages' is one message: at least two are expected, the last to be learnt")
    for number, (_, content) in enumerate(turns):
        text_of(content, f"messages[{number}].content")
    (*before, (role, answer)) = turns
    if role != "assistant":
        raise ValueError(f"the last message is the {role}'s, it must be the assistant's: it is what is learnt")
    return Example(answer, conversation.transcript(before).lstrip(), tuple(before))


def last_number(text: str) -> float | None:
    """The last number in a text; commas may stand between its digits."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def result(text: str) -> float | None:
    """The result that a text comes to: the first number behind its first ####, else the last number it names."""
    _, marker, behind = text.partition(RESULT)
    found = _NUMBER.search(behind) if marker else None
    return float(found[0].replace(",", "")) if found else last_number(text)
