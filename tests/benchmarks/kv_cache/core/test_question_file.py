"""Files in the published formats; malformed lines are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from benchmarks.kv_cache.core.question_file import FileQuestion, parse, read_questions

NIAH = {
    "index": 0,
    "input": "Some numbers are hidden below.\nThe number for oak is: 17.\nWhat is the number for oak?",
    "outputs": ["17"],
    "length": 40,
    "answer_prefix": " The number for oak is",
}
HOTPOT = {
    "input": "Who built it?",
    "context": "A tower.\n\nAda built it.",
    "answers": ["Ada", "Ada H."],
    "length": 8,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "x",
}


def test_ruler():
    assert parse(NIAH) == FileQuestion(
        "Some numbers are hidden below.\nThe number for oak is: 17.",
        "\nWhat is the number for oak?",
        " The number for oak is",
        ("17",),
        "all",
    )
    documents = {**NIAH, "input": "Document 1:\nA tower.\n\nQuestion: Who?", "answer_prefix": " Answer:"}
    assert parse(documents).scoring == "any"
    older = {"input": "Text.\nQuestion: Who? Answer:", "outputs": ["Ada", "ada"]}
    assert parse(older) == FileQuestion("Text.", "\nQuestion: Who? Answer:", "", ("Ada", "ada"), "any")


def test_longbench():
    assert parse(HOTPOT) == FileQuestion(
        "A tower.\n\nAda built it.", "\n\nQuestion: Who built it?", "\nAnswer:", ("Ada", "Ada H."), "f1"
    )
    assert parse({**HOTPOT, "dataset": "hotpotqa_e"}).scoring == "f1"
    assert parse({**HOTPOT, "dataset": "triviaqa", "input": "P\nAnswer:"}).question == "\n\nP\nAnswer:"


def test_the_other_data_sets_of_longbench():
    trec = parse({**HOTPOT, "dataset": "trec", "input": "Question: Who?\nType:", "all_classes": ["Ada", "City"]})
    assert trec == FileQuestion(
        "A tower.\n\nAda built it.", "\nQuestion: Who?\nType:", "", ("Ada", "Ada H."), "class", ("Ada", "City")
    )
    assert trec.answer == " Ada"
    counted = parse({**HOTPOT, "dataset": "passage_count", "input": "", "answers": ["12"]})
    assert (counted.scoring, counted.cue, counted.answer) == ("number", "\nAnswer:", " 12")
    code = parse({**HOTPOT, "dataset": "lcc_e", "input": "", "answers": ["    return {x}"]})
    assert (code.scoring, code.question, code.answer) == ("line", "", "    return {x}")
    within = parse({**HOTPOT, "dataset": "repobench-p", "input": "def f({x}):", "answers": ["    pass"]})
    assert (within.question, within.cue) == ("def f({x}):", "\nNext line of code:\n")
    report = parse({**HOTPOT, "dataset": "gov_report_e", "input": "", "answers": ["A report."]})
    assert (report.scoring, report.cue, report.answer) == ("summary", "\nSummary:", " A report.")
    meeting = parse({**HOTPOT, "dataset": "qmsum"})
    assert meeting.question == "\n\nQuestion about this meeting: Who built it?"
    talk = parse({**HOTPOT, "dataset": "samsum", "input": "Dialogue: Hi.\nSummary:"})
    assert (talk.scoring, talk.cue, talk.question) == ("short summary", "", "\n\nDialogue: Hi.\nSummary:")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"input": "x"}, "neither 'outputs' (RULER) nor 'answers' (LongBench); there is input"),
        ({**NIAH, "input": "one line"}, "'input' is one line, so where its question begins cannot be told"),
        ({**NIAH, "input": 3}, "'input' is a number, a text is expected"),
        ({**NIAH, "answer_prefix": None}, "'answer_prefix' is no text"),
        ({**NIAH, "outputs": "17"}, "'outputs' is no list of answers"),
        ({**NIAH, "outputs": []}, "'outputs' is no list of answers, or an empty one"),
        ({**NIAH, "outputs": ["17", ""]}, "'outputs[1]' is empty"),
        ({**HOTPOT, "dataset": "vcsum"}, "data set 'vcsum' is scored by a metric that is not computed"),
        ({**HOTPOT, "dataset": "multifieldqa_zh"}, "scored are narrativeqa, qasper"),
        ({**HOTPOT, "dataset": "trec"}, "'all_classes' is no list of answers"),
        ({**HOTPOT, "dataset": "passage_retrieval_en"}, "an answer of passage_retrieval_en has no number: 'Ada'"),
        ({**HOTPOT, "dataset": "repobench-p", "input": ""}, "'input' is empty"),
        ({key: value for key, value in HOTPOT.items() if key != "context"}, "no 'context'; there is input, answers"),
        ({**HOTPOT, "answers": [None]}, "'answers[0]' is null"),
        ([1], "a list instead of an object"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: Any, told: str):
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{json.dumps(HOTPOT)}\n\n{json.dumps(line)}\n")
    with pytest.raises(UsageError) as error:
        read_questions(file)
    first = str(error.value).splitlines()[0]
    assert first.startswith(f"{file}, line 3: ")
    assert told in first
