"""A program that judges is asked in both orders, and what it does wrong is one line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from bench.errors import UsageError
from benchmarks.preference.core.judge_program import Program

QUESTIONS = [("Why?", "Because it rains.", "No."), ('Who?\n"I"', "é", "two\nlines"), ("When?", "same", "size")]
LONGER = "'a' if len(q['a']) > len(q['b']) else 'b' if len(q['a']) < len(q['b']) else 'tie'"


def program(folder: Path, body: str, seconds: float = 20.0) -> Program:
    script = folder / "judge.py"
    script.write_text(f"import json, os, sys, time\n{body}\n")
    return Program([sys.executable, str(script)], seconds)


def answering(verdict: str) -> str:
    return f"for line in sys.stdin:\n    q = json.loads(line)\n    print({verdict})"


def test_each_question_is_asked_in_both_orders(tmp_path: Path):
    judge = program(
        tmp_path, f"heard = open({str(tmp_path / 'heard')!r}, 'w')\n" + answering(LONGER) + "\n    heard.write(line)"
    )
    assert judge(QUESTIONS) == [1.0, -1.0, 0.0]
    heard = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert heard[::2] == [{"prompt": p, "a": one, "b": other} for p, one, other in QUESTIONS]
    assert heard[1::2] == [{"prompt": p, "a": other, "b": one} for p, one, other in QUESTIONS]


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_liking_for_a_place_is_a_tie(tmp_path: Path, place: str):
    assert program(tmp_path, answering(repr(place)))(QUESTIONS) == [0.0] * 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no key for the service')", "ended with exit code 1: no key for the service$"),
        ("os.kill(os.getpid(), 9)", "ended with exit code -9$"),
        (answering("'a' if q['a'] < q['b'] else 'maybe'"), "line 2 is 'maybe'; allowed: a, b, tie$"),
        ("print('a')", "1 lines on 6 questions; a verdict on each is wanted$"),
        (answering("'a\\n'"), "12 lines on 6 questions"),
        ("time.sleep(60)", r"not done with 6 questions within 0.5 s; raise workload.judge_seconds$"),
    ],
)
def test_what_it_does_wrong_is_one_line(tmp_path: Path, body: str, said: str):
    begin = time.monotonic()
    with pytest.raises(UsageError, match=said) as caught:
        program(tmp_path, body, 0.5 if "sleep" in body else 20.0)(QUESTIONS)
    assert str(caught.value).startswith(f"judge {sys.executable}")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 30


def test_what_it_started_ends_with_it(tmp_path: Path):
    child = tmp_path / "child"
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\ntime.sleep(60)"
    )
    with pytest.raises(UsageError, match="not done"):
        program(tmp_path, body, 3.0)(QUESTIONS)
    state = Path(f"/proc/{child.read_text()}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_no_shell_reads_its_arguments(tmp_path: Path):
    argument = f"; touch {tmp_path / 'touched'} $HOME `id`"
    script = program(tmp_path, f"assert sys.argv[1] == {argument!r}\n" + answering("'tie'"))
    assert Program([*script.argv, argument], 20.0)(QUESTIONS) == [0.0] * 3
    assert not os.path.exists(tmp_path / "touched")


def test_its_version_is_that_of_its_files(tmp_path: Path):
    first = program(tmp_path, "pass").version
    assert first == program(tmp_path, "pass").version != program(tmp_path, "1").version
    assert Program(["true"], 1.0).version == "of no known version"
