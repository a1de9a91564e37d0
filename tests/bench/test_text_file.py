from __future__ import annotations

from pathlib import Path

import pytest

from bench import text, text_file
from bench.errors import UsageError


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
        ('{"text": ""}\n', "line 1: no text"),
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
    assert text_file.read_prompts(write(tmp_path, "a\n\n b \n", "p.txt")) == ["a", "b"]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    assert text_file.read_documents(write(tmp_path, '{"text": "a\u2028b"}\n')) == ["a\u2028b"]


def test_a_file_is_split_without_overlap(tmp_path: Path) -> None:
    lines = [f'{{"text": "document {i % 40}"}}' for i in range(60)]
    path = str(write(tmp_path, "\n".join(lines)))
    splits = [set(text.documents(s, path).values()) for s in ("train", "validation", "test", "prompts")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    with pytest.raises(UsageError, match="too few to split"):
        text.documents("train", str(write(tmp_path, '{"text": "a"}')))
