"""Files of questions about long texts in the published formats, as lines of JSON. Malformed lines are named.

RULER       {"input": "<context>\\n<question>", "outputs": ["...", "..."], "answer_prefix": " ..."}
LongBench   {"context": "...", "input": "<question>", "answers": ["...", "..."], "dataset": "hotpotqa"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.text_file import each_line, records, text_of

Scoring = Literal["all", "any", "f1"]
"""The share of the answers that are found, whether any is, or the best F1 of them."""

F1_SETS = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa")
"""LongBench's data sets whose published metric is the F1 of words."""
WITH_CUE = ("triviaqa",)
"""Those whose input is a passage with its question and the beginning of the answer."""


@dataclass(frozen=True)
class FileQuestion:
    """One line."""

    context: str
    question: str
    cue: str
    """Beginning of the answer; empty where the file gives none."""
    answers: tuple[str, ...]
    scoring: Scoring


def read_questions(path: Path) -> list[FileQuestion]:
    """The questions of a file, in its order.

    Raises:
        UsageError: the file is missing, empty or malformed, or of a data set that is not scored; with the lines.
    """
    return each_line(path, records(path), parse)


def parse(data: Mapping[str, Any]) -> FileQuestion:
    """One line's question.

    Raises:
        ValueError: it is malformed, or its metric is not among those that are computed.
    """
    if "outputs" in data:
        return _ruler(data)
    if "answers" in data:
        return _longbench(data)
    raise ValueError(f"neither 'outputs' (RULER) nor 'answers' (LongBench); there is {', '.join(data) or 'nothing'}")


def _ruler(data: Mapping[str, Any]) -> FileQuestion:
    """The question is the last line of the input; of a question about documents any answer will do."""
    context, _, question = _field(data, "input").rstrip("\n").rpartition("\n")
    if not context.strip():
        raise ValueError("'input' is one line, so where its question begins cannot be told")
    cue = data.get("answer_prefix", "")
    if not isinstance(cue, str):
        raise ValueError("'answer_prefix' is no text")
    # lines do not name their task; only of those that are questions about documents the prompt ends like this
    about_documents = f"{question}{cue}".rstrip().endswith("Answer:")
    answers = _answers(data, "outputs")
    return FileQuestion(context, f"\n{question}", cue.rstrip(), answers, "any" if about_documents else "all")


def _longbench(data: Mapping[str, Any]) -> FileQuestion:
    name = _field(data, "dataset").removesuffix("_e")
    if name not in F1_SETS:
        raise ValueError(f"the data set {name!r} is scored by a metric that is not computed; scored are {_F1_LISTED}")
    context, question = _field(data, "context"), _field(data, "input")
    if name in WITH_CUE:
        return FileQuestion(context, f"\n\n{question}", "", _answers(data, "answers"), "f1")
    return FileQuestion(context, f"\n\nQuestion: {question}", "\nAnswer:", _answers(data, "answers"), "f1")


_F1_LISTED = ", ".join(F1_SETS)


def _field(data: Mapping[str, Any], name: str) -> str:
    if name not in data:
        raise ValueError(f"no {name!r}; there is {', '.join(data)}")
    return text_of(data[name], name)


def _answers(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = data[name]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name!r} is no list of answers, or an empty one")
    return tuple(text_of(answer, f"{name}[{index}]") for index, answer in enumerate(found))
