"""Questions of a file: all prompts of one length, scored as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from copying import SOURCES, Forgetting

from bench import registry
from bench.errors import UsageError
from bench.workload import Quality
from benchmarks.kv_cache.question_file import QuestionFile

DECODE = SOURCES.target.tokenizer.decode
FILLER = "Nothing is said here. " * 12


def written(folder: Path, lines: list[dict[str, Any]]) -> str:
    file = folder / "questions.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(file)


def ruler(number: int, **values: Any) -> dict[str, Any]:
    key = f"tree {chr(97 + number)}"
    return {
        "input": f"{FILLER}\nThe number of {key} is {100 + number}!\nWhat is the number of {key}?",
        "outputs": [f"{100 + number}"],
        "answer_prefix": f" The number of {key} is",
        **values,
    }


def small(path: str = "", **values: Any) -> QuestionFile:
    return QuestionFile(**{"path": path, "context": 200, "items": 3, "timed_contexts": 2, "new_tokens": 8, **values})


def score(workload: QuestionFile, forgotten: tuple[int, ...] = ()) -> Quality:
    technique = Forgetting(forgotten=forgotten)
    built = workload.build(SOURCES, 0)
    return workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, None)


def test_ruler_is_answered_through_the_cache(tmp_path: Path):
    path = written(tmp_path, [ruler(number) for number in range(6)])
    quality = score(small(path, query_aware=True))
    assert quality.metrics["exact_match"] == quality.metrics["answers_found"] == [1.0] * 3
    assert quality.notes == {
        "prompts that lost their middle: 5, 735 tokens in all": "raise context=200",
    }
    blind = score(small(path), tuple(range(1, 160)))
    assert blind.metrics["exact_match"] == [0.0] * 3
    assert len(blind.notes) == 2


def test_the_middle_is_lost_and_nothing_else(tmp_path: Path):
    path = written(tmp_path, [ruler(number) for number in range(5)])
    built = small(path).build(SOURCES, 0)
    assert {len(row) for row in built["scored"]} == {208}
    for row in built["timed"]:
        prompt = DECODE(row)
        assert len(row) == 200
        assert prompt.startswith(FILLER[:50])
        assert prompt.count("The number of tree") == 2
        assert prompt.count("What is the number of tree") == 1


def test_any_answer_will_do_where_a_document_is_asked_about(tmp_path: Path):
    lines = [ruler(number, outputs=["nowhere", f"{100 + number}"], answer_prefix=" Answer:") for number in range(5)]
    workload = small(written(tmp_path, lines), new_tokens=10)
    one = workload.build(SOURCES, 0)["items"][0]
    assert workload.judged(f" it is {one['answers'][1]}", one) == {"exact_match": 1.0, "answers_found": 1.0}
    assert workload.judged(" it is not", one) == {"exact_match": 0.0, "answers_found": 0.0}


def test_string_match_is_the_share_of_all_answers():
    one = {"scoring": "all", "answers": ["12", "34", "56", "78"]}
    assert small().judged(" 12, 34 and 567", one) == {"exact_match": 0.0, "answers_found": 0.75}


def test_f1_is_that_of_the_best_answer_in_the_first_line():
    one = {"scoring": "f1", "answers": ["the tower", "tower of London"]}
    assert small().judged(" Tower of London\nQuestion: what", one) == {"answer_f1": 1.0}
    assert small().judged("\nno", one) == {"answer_f1": 0.0}


@pytest.mark.parametrize(
    ("scoring", "said", "expected"),
    [
        ("class", " b\nc", 1.0),
        ("number", " 3 or 4", 0.5),
        ("line", "x = 3\ny", 1.0),
        ("line", "    x = 3", 0.71),
        ("summary", " a b\nc.", 1.0),
        ("short summary", " a b\nc.", 0.8),
    ],
)
def test_longbenchs_other_scores(scoring: str, said: str, expected: float):
    right = {"class": "b", "number": "Paragraph 3", "line": "x = 3", "summary": "a b c.", "short summary": "a b c."}[
        scoring
    ]
    one = {"scoring": scoring, "answers": ["-9-", right], "classes": ["a", "b", "c"]}
    assert small().judged(said, one) == {"answer_score": pytest.approx(expected)}


def test_of_a_long_summary_the_beginning_is_scored(tmp_path: Path):
    line = {"input": "", "context": FILLER * 2, "answers": ["It says that nothing is said."], "dataset": "multi_news"}
    built = small(written(tmp_path, [line] * 5), new_tokens=8).build(SOURCES, 0)
    assert [one["tokens"] for one in built["items"]] == [7] * 3


def test_own_questions():
    built = QuestionFile().build(SOURCES, 0)
    assert len(built["scored"]) == 10
    assert {one["scoring"] for one in built["items"]} == {"f1"}
    quality = score(small(new_tokens=40, context=384))
    assert list(quality.metrics) == ["answer_nll", "answer_f1", "token_agreement"]
    assert any("answer_f1 0.0" in note for note in quality.notes)


def test_lines_that_are_too_short_are_left_out_and_told(tmp_path: Path):
    lines = [ruler(number) for number in range(5)] + [ruler(7, input="Short.\nWhat?")]
    built = small(written(tmp_path, lines)).build(SOURCES, 0)
    assert built["notes"]["lines left out, as their prompts are shorter than the context: 1"] == "lower context=200"
    assert not any("Short." in DECODE(row) for row in built["scored"] + built["timed"])
    kept = small(written(tmp_path, lines), shortest=30, items=4, query_aware=True).build(SOURCES, 0)
    assert any(DECODE(row).startswith("Short.") for row in kept["scored"] + kept["timed"])
    assert [note for note in kept["notes"] if "left out" in note] == []
    told = small(written(tmp_path, lines), shortest=80).build(SOURCES, 0)["notes"]
    assert told["lines left out, as their prompts are shorter than 80: 1"] == "lower shortest=80"
    with pytest.raises(UsageError, match=r"0 of 6 lines have prompts of context=900 tokens or more"):
        small(written(tmp_path, lines), context=900).build(SOURCES, 0)
    with pytest.raises(UsageError, match="context=20 is too small"):
        small(written(tmp_path, lines), context=20).build(SOURCES, 0)


def test_prompts_of_different_lengths_are_answered(tmp_path: Path):
    path = written(tmp_path, [ruler(n, input=ruler(n)["input"][23 * n :]) for n in range(6)])
    workload = small(path, context=400, shortest=150, query_aware=True)
    lengths = {len(row) for row in workload.build(SOURCES, 0)["scored"]}
    assert len(lengths) == 3
    assert score(workload).metrics["exact_match"] == [1.0] * 3


def test_two_formats_are_two_files(tmp_path: Path):
    other = {"input": "Who?", "context": "Ada.", "answers": ["Ada"], "dataset": "qasper"}
    with pytest.raises(UsageError, match="lines that are scored by f1 and by string match; give a file for each"):
        small(written(tmp_path, [ruler(0), other])).check()
    with pytest.raises(UsageError, match="No such file"):
        small(str(tmp_path / "none.jsonl")).check()
    assert registry.workloads["question_file"].cls is QuestionFile
