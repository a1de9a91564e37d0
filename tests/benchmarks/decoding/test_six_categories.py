from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import text_file
from bench.errors import UsageError
from bench.experiment import check
from bench.models import Source, Sources
from benchmarks.decoding import six_categories
from benchmarks.decoding.core.chat import chat
from benchmarks.decoding.six_categories import SixCategories, greedy_answer

SOURCES = Sources(Source("tiny:llama"))
NAMES = ["conversation", "translation", "question_answering", "mathematics", "summarisation", "retrieval"]


def shown(ids: Iterable[int]) -> str:
    return SOURCES.target.tokenizer.decode(list(ids))


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_the_prompts_are_sixteen_different_ones_of_each_category() -> None:
    own = six_categories._own()
    assert len({prompt.turns for prompt in own}) == 96
    for name in NAMES:
        of_it = [prompt.turns for prompt in own if prompt.category == name]
        assert len(of_it) == 16
        assert {len(turns) for turns in of_it} == {2 if name == "conversation" else 1}
        if name in {"summarisation", "retrieval"}:
            words = [len(turns[0].split()) for turns in of_it]
            assert 100 <= min(words) <= max(words) <= 200, "passages of 100 to 200 words"
    assert {prompt.category for prompt in own} == set(NAMES) == set(text_file.CATEGORIES.values())


def test_categories_take_turns_in_every_burst() -> None:
    workload = SixCategories(answer_tokens=2)
    built = workload.build(SOURCES, 0)
    assert built["categories"]["scored"] == NAMES * 4
    assert built["categories"]["timed"] == NAMES * 12
    prompts = [tuple(ids) for ids in built["scored"] + built["timed"]]
    assert len(set(prompts)) == 96, "a prompt is scored and timed, or twice either"
    asked = {prompt.turns[-1]: prompt.category for prompt in six_categories._own()}
    for index in (-1, 0, 5, 11):
        ends = [shown(ids).removesuffix("\nassistant: ") for ids in workload.burst(built, index, 0, "cpu").prompts]
        assert [next(asked[turn] for turn in asked if end.endswith(turn)) for end in ends] == NAMES


def test_fewer_prompts_keep_the_turns() -> None:
    built = SixCategories(items=4, timed_prompts=8, answer_tokens=2).build(SOURCES, 0)
    assert built["categories"] == {"scored": NAMES[:4], "timed": NAMES + NAMES[:2]}


def test_the_template_is_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("tiny:llama")
    tokenizer = source.tokenizer
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    tokenizer.add_bos_token = True
    built = SixCategories(categories=["translation"], items=1, timed_prompts=2).build(Sources(source), 0)
    for ids in built["scored"] + built["timed"]:
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids[1:]).startswith("user: Translate from ")
        assert tokenizer.decode(ids).endswith("\nassistant: ")
    tokenizer.chat_template = None
    bare = chat(source, "a", "b", "c")
    assert bare.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(bare[1:]) == "a\n\nb\n\nc"


def test_the_second_turn_follows_the_models_own_answer() -> None:
    workload = SixCategories(categories="conversation", items=1, timed_prompts=2, answer_tokens=5)
    built = workload.build(SOURCES, 0)
    first, second = six_categories._own()[0].turns
    model = SOURCES.target.model()
    prompt = torch.tensor([SOURCES.target.tokenizer(f"user: {first}\nassistant: ", add_special_tokens=False).input_ids])
    theirs = model.generate(prompt, do_sample=False, max_new_tokens=5, pad_token_id=0)[0, prompt.shape[1] :]
    assert shown(built["scored"][0]) == f"user: {first}\nassistant: {shown(theirs)}\nuser: {second}\nassistant: "
    assert built == workload.build(SOURCES, 1), "arms and seeds would read different conversations"


def test_an_answer_ends_at_a_special_id() -> None:
    source = Source("tiny:llama")
    model = source.model()
    ids = source.tokenizer("user: a\nassistant: ").input_ids
    told = greedy_answer(source, model, ids, 4)
    assert told
    source.tokenizer.eos_token = source.tokenizer.tokenize(told)[0]
    assert greedy_answer(source, model, ids, 4) == ""


def test_no_network_is_read_where_no_answer_is_needed() -> None:
    used = Sources(Source("tiny:llama"))
    workload = SixCategories(categories=["translation", "retrieval"], items=2, timed_prompts=4)
    workload.build(used, 0)
    assert used.log == []
    assert workload.work()[0].decode == 0
    assert SixCategories(answer_tokens=10).work()[0].decode == 16 * 10


def test_spec_bench(tmp_path: Path) -> None:
    rows = [
        {"question_id": place, "category": kind, "turns": [f"{kind} {place}"] * (1 + (kind in {"writing", "stem"}))}
        for place, kind in enumerate(sorted([*text_file.CATEGORIES] * 4))
    ]
    workload = SixCategories(path=write(tmp_path / "question.jsonl", rows), items=6, timed_prompts=18, answer_tokens=2)
    categories = workload.build(SOURCES, 0)["categories"]
    assert sorted(categories["scored"]) == sorted(NAMES)
    assert categories["timed"] == categories["scored"] * 3, "as long as the smallest category has prompts"
    scored, timed = workload._dealt()
    told = [prompt.turns[0].split()[0] for prompt in scored + timed if prompt.category == "conversation"]
    assert len(set(told)) == 4, "a file that is sorted by subject is asked about its beginning only"


def test_a_small_file_is_timed_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():", "canonical_solution": " pass"} for i in range(7)]
    built = SixCategories(path=write(tmp_path / "h.jsonl", [*rows, *rows]), items=3).build(SOURCES, 0)
    assert built["categories"] == {"scored": ["code"] * 3, "timed": ["code"] * 4}
    assert {shown(ids) for ids in built["scored"] + built["timed"]} == {
        f"user: {row['prompt']}\nassistant: " for row in rows
    }


def test_a_plain_file_has_no_category(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("one\ntwo\nthree\n")
    built = SixCategories(path=str(path), items=1).build(SOURCES, 0)
    assert built["categories"] == {"scored": ["uncategorised"], "timed": ["uncategorised"] * 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"categories": ["translatoin"]}, "no category 'translatoin'; did you mean 'translation'"),
        ({"items": 96}, "16 prompts of the category 'conversation'; with items=96 it needs at least 18"),
        ({"path": "none.jsonl"}, "none.jsonl: No such file"),
        ({"path": "FILE", "categories": ["code"]}, "own.jsonl has no category 'code'; allowed: uncategorised"),
        ({"path": "FILE", "items": 1}, "own.jsonl: 2 prompts of the category 'uncategorised'; with items=1"),
    ],
)
def test_what_cannot_be_dealt(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "own.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    if parameters.get("path") == "FILE":
        parameters = {**parameters, "path": path}
    block = {"workload": {"name": "six_categories", **parameters}, "arms": ["autoregressive"]}
    with pytest.raises(UsageError, match=message):
        check({"name": "x", "comparisons": [block]}, "x")
