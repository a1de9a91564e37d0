from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.models import Source, Sources
from benchmarks.decoding.grounded_chat import GroundedChat

SOURCES = Sources(Source("tiny:llama"))


def test_prompts_are_distinct_and_in_the_template() -> None:
    workload = GroundedChat(items=3, timed_prompts=97, passage_words=150)
    built = workload.build(SOURCES, 0)
    prompts = [tuple(ids) for ids in built["scored"] + built["timed"]]
    assert len(set(prompts)) == 100
    used = [prompt.tolist() for index in range(-1, 20) for prompt in workload.burst(built, index, 0, "cpu").prompts]
    assert len(used) == 84
    assert len({tuple(ids) for ids in used}) == 84, "bursts share prompts"
    text = SOURCES.target.tokenizer.decode(prompts[0])
    assert text.startswith("user: Summarise the following text")
    assert text.endswith("assistant: ")


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"question_id": 1, "turns": ["first", "second"]}, {"question": "what"}, {"prompt": "def f():"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    built = GroundedChat(items=1, path=str(path)).build(SOURCES, 0)
    shown = [SOURCES.target.tokenizer.decode(ids) for ids in built["scored"] + built["timed"]]
    assert shown == [f"user: {text}\nassistant: " for text in ("first", "what", "def f():")]
    with pytest.raises(UsageError, match="items=12 needs at least 14"):
        GroundedChat(path=str(path)).build(SOURCES, 0)


def test_a_passage_that_no_document_has() -> None:
    with pytest.raises(UsageError, match="0 passages of 20000 words"):
        GroundedChat(passage_words=20000).build(SOURCES, 0)
