"""A question is answered through what the cache has kept, and not otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from copying import SOURCES, Copying, Forgetting
from pydantic import ValidationError

from bench.errors import Unsupported, UsageError
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from bench.workload import Quality
from benchmarks.kv_cache.core.questions import QuestionWorkload
from benchmarks.kv_cache.key_value_retrieval import KeyValueRetrieval
from benchmarks.kv_cache.single_needle import SingleNeedle
from techniques.kv_cache.tova import Tova

TINY = Sources(Source("tiny:llama"))
DECODE = SOURCES.target.tokenizer.decode


def small(cls: type[QuestionWorkload] = KeyValueRetrieval, **values: Any) -> QuestionWorkload:
    return cls(**{"context": 250, "items": 1, "timed_contexts": 3, **values})


def score(
    workload: QuestionWorkload, forgotten: tuple[int, ...] = (), seed: int = 0, reference: Quality | None = None
) -> Quality:
    technique = Forgetting(forgotten=forgotten)
    prepared = technique.prepare(SOURCES)
    return workload.quality(technique, prepared, workload.build(SOURCES, seed), seed, SOURCES.target, reference)


@pytest.mark.parametrize("query_aware", [False, True])
@pytest.mark.parametrize("cls", [KeyValueRetrieval, SingleNeedle])
def test_the_full_cache_passes_and_one_that_drops_the_needle_fails(cls: type[QuestionWorkload], query_aware: bool):
    workload = small(cls, query_aware=query_aware)
    assert workload.label == f"question {'before' if query_aware else 'behind'} the eviction"
    for seed in range(2):
        (start, end), *others = workload.build(SOURCES, seed)["items"][0]["places"]
        assert not others
        full = score(workload, seed=seed)
        assert full.metrics["exact_match"] == [1.0]
        assert full.metrics["answer_nll"][0] < 1e-4
        assert full.notes == {}
        dropped = score(workload, tuple(range(start, end)), seed, full)
        assert dropped.metrics["exact_match"] == dropped.metrics["answers_found"] == [0.0]
        assert dropped.metrics["answer_nll"][0] > 5
        assert dropped.notes == {}, "it is the baseline that decides"
        around = (*range(start - 60, start - 30), *range(end + 30, end + 60))
        assert score(workload, around, seed, full).metrics["exact_match"] == [1.0]


def test_likelihood_is_the_mean_over_the_answers_tokens_and_no_others():
    workload = small(new_tokens=12)
    built = workload.build(SOURCES, 0)
    assert built["items"][0]["tokens"] == 6  # " 48213"
    _, end = built["items"][0]["places"][0]
    # without the last digit of the line all but the last byte of the answer can be copied
    cut = score(workload, (end - 1,)).metrics["answer_nll"][0]
    assert cut == pytest.approx(20 / 6, abs=1e-3) or cut == pytest.approx(math.log(264) / 6, abs=1e-3)


def test_query_agnostic_reads_the_question_behind_the_eviction():
    for query_aware in (False, True):
        workload = small(SingleNeedle, query_aware=query_aware)
        built = workload.build(SOURCES, 0)
        technique = Forgetting()
        prepared = technique.prepare(SOURCES)
        job = workload.burst(built, 0, 0, "cpu")
        next(technique.steps(prepared, job))
        first, *rest = prepared.state.reads
        assert all(ids.shape[1] == 1 for ids in rest)
        at_once, late = DECODE(first[0]), DECODE(torch.cat(rest, 1)[0])
        assert DECODE(built["timed"][0]) == at_once + late
        assert late.endswith(" is")
        assert ("What is the code" in at_once) == query_aware
        assert ("What is the code" in late) != query_aware
        assert len(rest) == built["late"] == job.late


def test_both_ways_read_the_same_texts():
    aware, agnostic = (small(query_aware=way, items=4).build(SOURCES, 3) for way in (True, False))
    assert aware["scored"] == agnostic["scored"]
    assert aware["timed"] == agnostic["timed"]
    assert 0 < aware["late"] < agnostic["late"]


def test_the_longest_question_says_how_much_is_read_late():
    workload = small(items=6, timed_contexts=1)
    built = workload.build(SOURCES, 0)
    questions = [DECODE(row[: workload.context]).rpartition("\n\n")[2] for row in built["scored"] + built["timed"]]
    assert built["late"] == max(map(len, questions)) + 2
    assert len({len(one) for one in questions}) > 1


def test_a_full_cache_that_fails_is_noted_for_every_arm():
    workload = small()
    start, end = workload.build(SOURCES, 0)["items"][0]["places"][0]
    failed = score(workload, tuple(range(start, end)))
    passed = score(workload, reference=failed)
    assert list(failed.notes) == list(passed.notes)
    (note,) = failed.notes
    assert "exact_match 0.00, and 0.50 is asked for" in note
    assert "say nothing" in note
    assert not score(small(usable=0.0), tuple(range(start, end))).notes


def test_rows_of_a_batch_are_scored_as_alone():
    alone, together = (score(small(items=5, timed_contexts=3, batch=batch)) for batch in (1, 3))
    assert alone.metrics == together.metrics
    assert alone.outputs == together.outputs
    assert alone.metrics["exact_match"] == [1.0] * 5


def test_prompts_of_different_lengths_are_scored_as_alone():
    assert score(small(items=5, shortest=160)).metrics["exact_match"] == [1.0] * 5
    built = small(items=5, shortest=160).build(SOURCES, 0)
    technique = Tova(ratio=0.5)
    prepared = technique.prepare(TINY)
    alone, together = (
        small(items=5, shortest=160, batch=batch).quality(technique, prepared, built, 0, TINY.target, None)
        for batch in (1, 3)
    )
    assert alone.outputs == together.outputs
    assert alone.metrics["answer_nll"] == pytest.approx(together.metrics["answer_nll"], abs=1e-5)
    assert len({len(row) for row in built["scored"]}) > 2
    assert {len(row) for row in built["timed"]} != {250}
    for row, one in zip(built["scored"], built["items"], strict=True):
        assert DECODE(row[:-8]).endswith(":")
        assert DECODE(row[-8:]).strip().startswith(one["answers"][0])


def test_seeds_items_and_splits_differ():
    workload = small(items=3)
    built = workload.build(SOURCES, 0)
    assert built == workload.build(SOURCES, 0)
    assert built["scored"] != workload.build(SOURCES, 1)["scored"]
    rows = [tuple(row[: workload.context]) for row in built["scored"] + built["timed"]]
    assert len(set(rows)) == 6
    # more items change nothing about how the first is made but its depth
    assert workload.build(SOURCES, 0)["items"][0]["answers"] == small(items=9).build(SOURCES, 0)["items"][0]["answers"]


def test_items_are_spread_over_the_context():
    workload = small(SingleNeedle, context=1500, items=10, timed_contexts=1)
    starts = [one["places"][0][0] / 1500 for one in workload.build(SOURCES, 0)["items"]]
    assert min(starts) < 0.2
    assert max(starts) > 0.7
    assert starts == sorted(starts) or len(set(starts)) == 10


def test_what_does_not_fit_says_so():
    with pytest.raises(UsageError, match=r"answer takes 6 tokens .* new_tokens=6; give new_tokens=7 at least"):
        small(new_tokens=6).build(SOURCES, 0)
    with pytest.raises(UsageError, match=r"raise context by \d+ at least"):
        small(context=60).build(SOURCES, 0)
    with pytest.raises(Unsupported, match="2048"):
        small(context=2048).build(SOURCES, 0)
    with pytest.raises(ValidationError, match="timed_contexts"):
        small(batch=9)


def test_begin_of_text_stands_first():
    class Beginning:
        bos_token_id = 7

        def __call__(self, said: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [7] * add_special_tokens + list(said.encode())}

    target: Any = type("Target", (), {"tokenizer": Beginning(), "config": SOURCES.target.config})
    sources: Any = type("All", (), {"target": target})
    built = small().build(sources, 0)
    assert [row[0] for row in built["scored"] + built["timed"]] == [7] * 4
    assert all(row.count(7) == 1 and len(row) == 250 for row in built["timed"])
    start, end = built["items"][0]["places"][0]
    assert bytes(built["scored"][0][start:end]).decode().endswith(f": {built['items'][0]['answers'][0]}")
    assert small(begin=False).build(sources, 0)["timed"][0].count(7) == 0


def test_copying_reads_what_is_held():
    technique = Forgetting()
    prepared = technique.prepare(SOURCES)
    assert isinstance(prepared.model, Copying)
    job = KVCacheJob(contexts=torch.tensor([[1, 2, 3, 4, 1, 2]]), max_new_tokens=3)
    assert technique.generate(prepared, job).outputs == [[3, 4, 1]]
