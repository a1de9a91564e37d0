"""Every format gives prompt and answer; what is malformed is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from benchmarks.finetuning.core.instruction_file import Example, last_number, parse, read_examples, result


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_gsm8k():
    found = parse({"question": "How many?", "answer": "2 + 70 = <<2+70=72>>72\n#### 1,072"})
    assert found.turns == (("user", "How many?"),)
    assert found.prompt == "Question: How many?\nAnswer:"
    assert found.answer == "2 + 70 = <<2+70=72>>72\n#### 1,072"
    assert found.number == 1072


def test_questions_without_a_number_are_only_read():
    assert parse({"question": "Who?", "answer": "The 3 of us."}).number is None


def test_alpaca():
    found = parse({"instruction": "Translate.", "input": "Haus", "output": "house"})
    assert found.turns == (("user", "Translate.\n\nHaus"),)
    assert found.prompt == "### Instruction:\nTranslate.\n\n### Input:\nHaus\n\n### Response:"
    assert found.answer == "house"
    for nothing in ({"input": ""}, {"input": None}, {}):
        bare = parse({"instruction": "Say hello.", "output": "hello", **nothing})
        assert bare.turns == (("user", "Say hello."),)
        assert "Input" not in bare.prompt


def test_alpaca_goes_before_the_text_that_may_stand_beside_it():
    assert parse({"text": "all of it", "instruction": "Do.", "output": "done"}).answer == "done"


def test_prompt_and_completion_are_as_written():
    assert parse({"prompt": "One, two,", "completion": " three"}) == Example(" three", "One, two,")


def test_plain_text_is_learnt_whole():
    assert parse({"text": "Once upon a time"}) == Example("Once upon a time")


def test_of_a_conversation_the_last_message_is_learnt():
    said = [("system", "Be short."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    found = parse({"messages": [{"role": role, "content": content} for role, content in said]})
    assert found.answer == "Ciao"
    assert found.turns == tuple(said[:-1])
    assert found.prompt == "System: Be short.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"question": "x"}, "it has the fields of no known format"),
        ({}, "there is nothing"),
        ({"question": "x", "answer": ""}, "'answer' is empty"),
        ({"prompt": ["x"], "completion": "y"}, "'prompt' is a list, a text is expected"),
        ({"instruction": "x", "input": 3, "output": "y"}, "'input' is no text"),
        ({"messages": "x"}, "'messages' is no list of messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "'messages' is one message: at least two are expected"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "the last message is the user's"),
        ({"messages": [{"role": "bot", "content": "x"}] * 2}, r"messages\[0\] has no 'role' of system, user"),
        ({"messages": [{"role": "user"}] * 2}, r"messages\[0\] has no text under 'content'"),
        ({"messages": [{"role": "user", "content": " "}] * 2}, r"messages\[0\].content' is empty"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: Any, problem: str):
    good = {"question": "a", "answer": "b"}
    with pytest.raises(UsageError, match=rf"own.jsonl, line 2: .*{problem}"):
        read_examples(written(tmp_path / "own.jsonl", good, line, good))


def test_files(tmp_path: Path):
    found = read_examples(written(tmp_path / "own.jsonl", {"text": "a"}, {"text": "b"}))
    assert [example.answer for example in found] == ["a", "b"]
    plain = tmp_path / "own.txt"
    plain.write_text("First.\n\nSecond.")
    assert read_examples(plain) == [Example("First.\n\nSecond.")]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(UsageError, match=r"empty.jsonl is empty"):
        read_examples(empty)


def test_a_list_of_examples_is_read_by_its_elements(tmp_path: Path):
    lines: list[Any] = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(3)]
    own = tmp_path / "own.json"
    own.write_text(json.dumps(lines, indent=2))
    assert [example.answer for example in read_examples(own)] == ["0", "1", "2"]
    own.write_text(json.dumps([*lines, {"instruction": "x"}, 5], indent=2))
    with pytest.raises(UsageError) as error:
        read_examples(own)
    assert "own.json, line 4: it has the fields of no known format" in str(error.value)
    assert "own.json, line 5: a int instead of an object" in str(error.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 3 = 8\n#### 8", 8),
        ("#### $1,250.50 in all", 1250.5),
        ("So it is 12, or 13.", 13),
        ("#### 7\n#### 9", 7),  # what comes behind the result is no result
        ("12 #### none", 12),
        ("-3 degrees", -3),
        ("nothing", None),
    ],
)
def test_results(text: str, number: float | None):
    assert result(text) == number


def test_last_number():
    assert last_number("3, 4 and 5.") == 5
