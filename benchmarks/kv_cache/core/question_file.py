"""Files of questions about long texts in the published formats, as lines of JSON. Malformed lines are named.

RULER       {"input": "<context>\\n<question>", "outputs": ["...", "..."], "answer_prefix": " ..."}
LongBench   {"context": "...", "input": "<question>", "answers": ["...", "..."], "dataset": "hotpotqa"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.text_file import each_line, records, text_of

Scoring = Literal["all", "any", "f1", "class", "number", "line", "summary", "short summary"]
"""RULER's: the share of the answers that are found, or whether any is. LongBench's: the F1 of words, the class that is
named, the number that is given, the likeness of a line of code, ROUGE-L of a summary or of its first line; of several
answers the best."""


class Form(NamedTuple):
    """How a data set of LongBench is asked, and its published metric."""

    question: str
    """Behind the context; `{input}` stands for the line's."""
    cue: str
    scoring: Scoring


_QUESTION = Form("\n\nQuestion: {input}", "\nAnswer:", "f1")
_CODE = Form("{input}", "\nNext line of code:\n", "line")
LONGBENCH: Mapping[str, Form] = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"), _QUESTION),
    # a passage or an example to go on with, and the beginning of the answer
    "triviaqa": Form("\n\n{input}", "", "f1"),
    "trec": Form("\n{input}", "", "class"),
    "passage_count": Form("\n\nHow many different paragraphs are there?", "\nAnswer:", "number"),
    "passage_retrieval_en": Form("\n\nWhich paragraph does this sum up?\n{input}", "\nAnswer:", "number"),
    "lcc": _CODE,
    "repobench-p": _CODE,
    "gov_report": Form("\n\nWhat does this report say? Sum it up on one page.", "\nSummary:", "summary"),
    "multi_news": Form("\n\nWhat do these articles say? Sum them up on one page.", "\nSummary:", "summary"),
    "qmsum": Form("\n\nQuestion about this meeting: {input}", "\nAnswer:", "summary"),
    "samsum": Form("\n\n{input}", "", "short summary"),
}
"""LongBench's data sets in English."""
NOT_ASKED = ("passage_count", "lcc", "gov_report", "multi_news")
"""Those that ask the same of every line, whose input is empty."""


@dataclass(frozen=True)
class FileQuestion:
    """One line."""

    context: str
    question: str
    cue: str
    """Beginning of the answer; empty where the file gives none."""
    answers: tuple[str, ...]
    scoring: Scoring
    classes: tuple[str, ...] = ()
    """Of which one is to be named."""

    @property
    def answer(self) -> str:
        """The first answer, as it stands behind the prompt."""
        if self.scoring == "line":
            return self.answers[0]
        return f" {', '.join(self.answers) if self.scoring == 'all' else self.answers[0]}"


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
    if name not in LONGBENCH:
        listed = ", ".join(LONGBENCH)
        raise ValueError(f"the data set {name!r} is scored by a metric that is not computed; scored are {listed}")
    form, answers = LONGBENCH[name], _answers(data, "answers")
    asked = "" if name in NOT_ASKED else _field(data, "input")
    classes = _answers(data, "all_classes") if form.scoring == "class" else ()
    if form.scoring == "number" and not all(re.search(r"\d", answer) for answer in answers):
        raise ValueError(f"an answer of {name} has no number: {answers[0]!r}")
    question = form.question.replace("{input}", asked)
    return FileQuestion(_field(data, "context"), question, form.cue, answers, form.scoring, classes)


def _field(data: Mapping[str, Any], name: str) -> str:
    if name not in data:
        raise ValueError(f"no {name!r}; there is {', '.join(data)}")
    return text_of(data[name], name)


def _answers(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = data.get(name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name!r} is no list of answers, or an empty one")
    return tuple(text_of(answer, f"{name}[{index}]") for index, answer in enumerate(found))
