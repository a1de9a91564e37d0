"""Answers are learnt and scored, prompts are given; what a file loses on the way is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.families.finetuning import IGNORED
from bench.models import Source, Sources
from benchmarks.finetuning.instructions import Instructions, result_of, same
from techniques.finetuning.core.lora import LoraLinear
from techniques.finetuning.full import Full
from techniques.finetuning.lora import Lora

SOURCE = Source("tiny:llama")
SOURCES = Sources(SOURCE)
decode = SOURCE.tokenizer.decode


def file_of(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def questions(first: int, count: int, words: int = 3) -> list[dict[str, Any]]:
    numbers = range(first, first + count)
    return [{"question": f"question {n} {'abc ' * words}?", "answer": f"it is {n}\n#### {n}"} for n in numbers]


def small(**values: Any) -> Instructions:
    return Instructions(**{"sequence": 128, "items": 4, "batch_size": 2, "other_items": 2, "new_tokens": 4, **values})


def test_only_answers_are_learnt(tmp_path: Path):
    workload = small(path=file_of(tmp_path / "own.jsonl", questions(0, 20)))
    built = workload.build(SOURCES, 0)
    assert (len(built["train"]), len(built["heldout"])) == (16, 4)
    for batch in workload.burst(built, 0, 0, "cpu").batches:
        for ids, labels in zip(batch.ids, batch.labels, strict=True):
            learnt = decode(labels[labels != IGNORED].tolist())
            assert learnt.startswith("it is ")
            assert learnt.endswith("<eos>")
            given = decode(ids[: int((labels != IGNORED).int().argmax())].tolist())
            assert given.endswith("?\nassistant: ")


def test_no_prompt_is_in_both(tmp_path: Path):
    lines = [*questions(0, 20), {"question": "question 0 abc abc abc ?", "answer": "another answer"}]
    built = small(path=file_of(tmp_path / "own.jsonl", lines)).build(SOURCES, 0)
    prompts = [{tuple(one["ids"][: one["prompt"]]) for one in built[name]} for name in ("train", "heldout")]
    assert len(prompts[1]) == 4
    assert not prompts[0] & prompts[1]
    assert built == small(path=str(tmp_path / "own.jsonl")).build(SOURCES, 7), "held out are the same for every seed"


def test_a_test_file_is_held_out_and_what_both_share_is_told(tmp_path: Path):
    train = file_of(tmp_path / "train.jsonl", questions(0, 12, words=12))
    test = file_of(tmp_path / "test.jsonl", questions(100, 3, words=2) + questions(5, 1, words=12))
    built = small(path=train, test_path=test).build(SOURCES, 0)
    assert len(built["train"]) == 12
    assert built["numbers"] == [100, 101, 102, 5]
    assert built["counts"] == {"contaminated_items": 1.0, "contamination_ngram": 13.0}
    assert any("1 of 4 held-out texts share a run of 13 words" in note for note in built["notes"])
    assert any("(number 4)" in note for note in built["notes"])


def test_what_is_cut_is_told(tmp_path: Path):
    lines = questions(0, 20)
    lines[3] = {"question": "long", "answer": "a" * 300}
    lines[4] = {"question": "b" * 300, "answer": "short"}
    built = small(path=file_of(tmp_path / "own.jsonl", lines)).build(SOURCES, 0)
    assert max(len(one["ids"]) for one in built["train"]) == 128
    # "user: long\nassistant: ", 300 letters and the end
    assert built["notes"] == {
        f"texts that lost their end: 1, {22 + 301 - 128} tokens in all": "raise sequence=128",
        "texts left out, as their prompt alone fills a sequence: 1": "raise sequence=128",
    }


@pytest.mark.parametrize(
    ("lines", "values", "problem"),
    [
        (questions(0, 3), {}, "3 different examples, 4 are held out; lower items"),
        (questions(0, 4), {}, "all 4 examples are held out, none is left to learn; lower items"),
        (
            questions(0, 20),
            {"sequence": 16},
            "no training text has a token to learn within sequence=16",
        ),
    ],
)
def test_too_little_is_said(tmp_path: Path, lines: list[dict[str, Any]], values: dict[str, int], problem: str):
    with pytest.raises(UsageError, match=problem):
        small(path=file_of(tmp_path / "own.jsonl", lines), **values).build(SOURCES, 0)


def test_a_malformed_line_is_named_before_anything_starts(tmp_path: Path):
    with pytest.raises(UsageError, match=r"own.jsonl, line 2: it has the fields of no known format"):
        small(path=file_of(tmp_path / "own.jsonl", [*questions(0, 1), {"question": "x"}])).check()
    with pytest.raises(UsageError, match="No such file"):
        small(path=str(tmp_path / "none.jsonl")).check()


def test_packed_and_padded_rows_learn_the_same_texts(tmp_path: Path):
    path = file_of(tmp_path / "own.jsonl", questions(0, 24))
    built = small(path=path, packing=True).build(SOURCES, 0)
    assert sorted(text for row in built["rows"] for text in row) == list(range(20))
    assert len(built["rows"]) < 20
    batch = small(path=path, packing=True).burst(built, 0, 0, "cpu").batches[0]
    assert batch.ids.shape == (2, 128)
    assert batch.positions is not None
    assert "rows" not in small(path=path).build(SOURCES, 0)


class Parrot(Full):
    """Answers with the right number every so many times; never where that is 0."""

    every: int = 2

    def answers(self, prepared: Any, prompts: Any, new_tokens: int, end: int | None) -> list[list[int]]:
        numbers = [decode(prompt).split("question ")[1].split(" ")[0] for prompt in prompts]
        right = [bool(self.every) and place % self.every == 0 for place in range(len(numbers))]
        said = [f"so #### {number if knows else 999}" for number, knows in zip(numbers, right, strict=True)]
        return [SOURCE.tokenizer(text)["input_ids"] for text in said]


def test_task_accuracy_compares_numbers(tmp_path: Path):
    workload = small(path=file_of(tmp_path / "own.jsonl", questions(0, 20)), steps=1)
    technique = Parrot()
    quality = workload.quality(technique, technique.prepare(SOURCES), workload.build(SOURCES, 0), 0, SOURCE, None)
    assert quality.metrics["task_accuracy"] == [1, 0, 1, 0]
    assert len(quality.metrics["nll"]) == 4
    assert quality.texts[0]["output"].startswith("so #### ")
    assert "question 0 " in quality.texts[0]["prompt"]
    assert not [note for note in quality.notes if "task_accuracy" in note]


@pytest.mark.parametrize(("every", "told"), [(0, "its floor, 0 of 4 right"), (1, "its ceiling, 4 of 4 right")])
def test_none_or_all_right_says_nothing(tmp_path: Path, every: int, told: str):
    workload = small(path=file_of(tmp_path / "own.jsonl", questions(0, 20)), steps=1)
    technique = Parrot(every=every)
    quality = workload.quality(technique, technique.prepare(SOURCES), workload.build(SOURCES, 0), 0, SOURCE, None)
    (note,) = [note for note in quality.notes if "task_accuracy" in note]
    assert told in note
    assert "says nothing of a difference" in note


def test_the_published_number_is_scored_behind_the_way_to_it(tmp_path: Path):
    workload = small(path=file_of(tmp_path / "own.jsonl", questions(90, 20)), steps=1)
    technique = Full(learning_rate=1e-30)
    built = workload.build(SOURCES, 0)
    quality = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCE, None)
    for one, number, nll in zip(built["heldout"], built["numbers"], quality.metrics["result_nll"], strict=True):
        # a token a byte: a space, the digits and the end
        learnt = [*SOURCE.tokenizer(f" {number:.0f}")["input_ids"], 257]
        assert one["ids"][-len(learnt) :] == learnt
        with torch.no_grad():
            logits = SOURCE.model()(torch.tensor([one["ids"]])).logits[0].log_softmax(-1)  # type: ignore[operator]
        places = range(len(one["ids"]) - len(learnt), len(one["ids"]))
        expected = [-float(logits[place - 1, one["ids"][place]]) for place in places]
        assert nll == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_a_number_that_was_cut_off_is_not_scored(tmp_path: Path):
    lines = questions(0, 20)
    lines[0]["answer"] = "a" * 200 + "\n#### 0"
    workload = small(path=file_of(tmp_path / "own.jsonl", lines), steps=1)
    technique = Full()
    built = workload.build(SOURCES, 0)
    assert [result_of(SOURCE, one, SOURCE.tokenizer.eos_token_id) is None for one in built["heldout"]] == [
        True,
        False,
        False,
        False,
    ]
    quality = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCE, None)
    assert "task_accuracy" in quality.metrics
    assert "result_nll" not in quality.metrics


class Unmerged(Lora):
    """Says whether its adapters are there when it answers."""

    def answers(self, prepared: Any, prompts: Any, new_tokens: int, end: int | None) -> list[list[int]]:
        assert sum(isinstance(module, LoraLinear) for module in prepared.model.modules()) == 21
        return [[] for _ in prompts]


def test_answers_are_those_of_the_unmerged_model(tmp_path: Path):
    workload = small(path=file_of(tmp_path / "own.jsonl", questions(0, 20)), steps=1)
    technique = Unmerged()
    quality = workload.quality(technique, technique.prepare(SOURCES), workload.build(SOURCES, 0), 0, SOURCE, None)
    assert len(quality.metrics["merged_nll"]) == 4


def test_texts_without_numbers_have_no_task_accuracy(tmp_path: Path):
    lines = [{"text": f"text {n} " + "abc " * 5} for n in range(20)]
    workload = small(path=file_of(tmp_path / "own.jsonl", lines), steps=1)
    technique = Full()
    quality = workload.quality(technique, technique.prepare(SOURCES), workload.build(SOURCES, 0), 0, SOURCE, None)
    assert set(quality.metrics) == {"nll", "next_token_accuracy", "other_nll", "drift"}


def test_same_numbers():
    assert same(72.0, 72)
    assert not same(None, 0)
    assert not same(71.0, 72)


@pytest.mark.parametrize("packing", [False, True])
def test_our_own_problems_can_be_learnt(packing: bool):
    workload = Instructions(
        sequence=352, steps=12, items=4, batch_size=4, examples=24, new_tokens=4, packing=packing, other_items=2
    )
    built = workload.build(SOURCES, 0)
    assert built["counts"]["contaminated_items"] == 0
    assert built["notes"] == {}
    for technique in (Full(learning_rate=1e-3), Lora(learning_rate=5e-3)):
        torch.manual_seed(0)
        quality = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCE, None)
        assert sum(quality.metrics["nll"]) / 4 < quality.counts["nll_before"] - 0.1
        assert all(gate.passed for gate in quality.gates)
        assert set(quality.metrics["task_accuracy"]) <= {0.0, 1.0}
