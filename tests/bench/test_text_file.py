from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bench import text, text_file
from bench.errors import UsageError
from bench.text_file import Prompt


def write(tmp_path: Path, content: str | bytes, name: str = "x.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"text": "a"}\n{"text": \n', "line 2: no JSON"),
        ('{"text": "a"}\n\n[1]\n', "line 3: a list instead of an object"),
        ('{"text": "a"}\n{"id": 3, "body": "b"}\n', "line 2: no text under any of .* there is id, body"),
        ('{"text": " "}\n', "line 1: 'text' is empty"),
        ('{"text": ["a", "b"]}\n', "line 1: 'text' is a list, a text is expected"),
        ('{"text": "\\ud800"}\n', "line 1: 'text' is no Unicode text"),
        ('{"text": ' + "[" * 100_000, "line 1: no JSON that can be read"),
        ('{"text": ' + "1" * 5000 + "}", "line 1: no JSON that can be read"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ],
)
def test_malformed_files_name_the_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        text_file.read_documents(write(tmp_path, content))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        text_file.read_prompts(tmp_path / "none.txt")


def test_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path, "one\n\ntwo\n  \nthree" + "x" * 5000, "x.txt")
    assert [len(d) for d in text_file.read_documents(path)] == [len("one\n\ntwo"), 5005]
    assert text_file.read_prompts(write(tmp_path, "a\n\n b\u2028c \r\n", "p.txt")) == [
        Prompt(("a",)),
        Prompt(("b\u2028c",)),
    ]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    assert text_file.read_documents(write(tmp_path, '{"text": "a\u2028b"}\n')) == ["a\u2028b"]


def test_a_file_is_split_without_overlap(tmp_path: Path) -> None:
    lines = [f'{{"text": "document {i % 40}"}}' for i in range(60)]
    path = str(write(tmp_path, "\n".join(lines)))
    splits = [set(text.documents(s, path).values()) for s in ("train", "validation", "test", "prompts")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    with pytest.raises(UsageError, match="too few to split"):
        text.documents("train", str(write(tmp_path, '{"text": "a"}')))


SPEC_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["x"]},
    {"question_id": 161, "category": "rag", "turns": ["Who?"]},
    {"question_id": 162, "category": "poetry", "turns": ["Rhyme."]},
]
GSM8K = [{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, {"question": "Who?", "answer": "He."}]
HUMAN_EVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "canonical_solution": "    pass\n",
        "test": "",
    },
]


def lines(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize(
    ("rows", "prompts"),
    [
        (
            SPEC_BENCH,
            [
                Prompt(("Write.", "Again."), "conversation"),
                Prompt(("Who?",), "retrieval"),
                Prompt(("Rhyme.",), "poetry"),
            ],
        ),
        (
            GSM8K,
            [Prompt(("1 + 1?",), "mathematics", "1 + 1 = <<1+1=2>>2\n#### 2"), Prompt(("Who?",), "", "He.")],
        ),
        (HUMAN_EVAL, [Prompt(("def f():\n",), "code", "    pass\n")]),
        (
            # no published format: a name of Spec-Bench's is the user's own here
            [{"prompt": "a", "category": "math"}, {"turns": ["b", "c"]}, {"instruction": "d"}, {"question": "e"}],
            [Prompt(("a",), "math"), Prompt(("b", "c")), Prompt(("d",)), Prompt(("e",))],
        ),
    ],
)
def test_published_formats(tmp_path: Path, rows: list[Any], prompts: list[Prompt]) -> None:
    assert text_file.read_prompts(write(tmp_path, lines(rows))) == prompts
    packed = gzip.compress(b"\xef\xbb\xbf" + lines(rows).replace("\n", "\r\n").encode())
    assert text_file.read_prompts(write(tmp_path, packed, "x.jsonl.gz")) == prompts


@pytest.mark.parametrize(
    ("rows", "broken", "message"),
    [
        (SPEC_BENCH, {"question_id": 1, "category": "qa"}, "no 'turns', which lines of this format (Spec-Bench"),
        (SPEC_BENCH, {"question_id": 1, "category": "qa", "turns": []}, "'turns' is an empty list, a list of texts"),
        (SPEC_BENCH, {"question_id": 1, "category": "qa", "turns": "a"}, "'turns' is a text, a list of texts"),
        (SPEC_BENCH, {"question_id": 1, "category": "qa", "turns": ["a", 2]}, "'turns[1]' is a number"),
        (SPEC_BENCH, {"question_id": 1, "category": "qa", "turns": ["a", " "]}, "'turns[1]' is empty"),
        (SPEC_BENCH, {"question_id": 1, "category": None, "turns": ["a"]}, "'category' is null, a text"),
        (GSM8K, {"question": "a"}, "no 'answer', which lines of this format (GSM8K) have; there is question"),
        (GSM8K, {"question": "", "answer": "b"}, "'question' is empty"),
        (GSM8K, {"question": "a", "answer": 2}, "'answer' is a number"),
        (HUMAN_EVAL, {"task_id": "1", "prompt": "a"}, "no 'canonical_solution'"),
        (HUMAN_EVAL, {"task_id": "1", "prompt": ["a"], "canonical_solution": "b"}, "'prompt' is a list"),
        ([{"prompt": "a"}], {"prompt": True}, "'prompt' is true or false"),
        ([{"prompt": "a"}], {"id": 1}, "no text under any of prompt, question, instruction, turns, text; there is id"),
        ([{"prompt": "a"}], [1], "a list instead of an object"),
    ],
)
def test_malformed_prompts(tmp_path: Path, rows: list[Any], broken: Any, message: str) -> None:
    path = write(tmp_path, lines([*rows, broken]))
    with pytest.raises(UsageError) as raised:
        text_file.read_prompts(path)
    first, last = str(raised.value).split("\n")
    assert first.startswith(f"{path}, line {len(rows) + 1}: {message}")
    assert last == f"{path}: correct these lines or take them out"


def test_malformed_lines_are_named_together(tmp_path: Path) -> None:
    content = lines(GSM8K * 5) + "{\n" + lines([{"question": "a"}, 7, *GSM8K]) + '{"question": 1, "answer": "b"}\n' * 4
    with pytest.raises(UsageError) as raised:
        text_file.read_prompts(write(tmp_path, content))
    told = [line.partition(" line ")[2].partition(":")[0] for line in str(raised.value).split("\n")]
    assert told == ["11", "12", "13", "16", "17", "", ""]
    assert "2 more lines are malformed" in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b'{"prompt": "a"}', mtime=0)[:-4]], ids=["none", "cut short"]
)
def test_a_broken_gzip_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"x\.jsonl\.gz: no complete gzip file"):
        text_file.read_prompts(write(tmp_path, content, "x.jsonl.gz"))
