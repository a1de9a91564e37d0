"""The shared loop of the cache family, and what its quality pass finds."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from bench.families import cache as kv
from bench.families import kv_cache_workload
from bench.families.kv_cache import KVCacheJob, full_logits
from bench.families.kv_cache_workload import KVCacheWorkload
from bench.metrics import metric
from bench.models import Source, Sources
from bench.workload import Built, Quality
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.streaming_llm import StreamingLayer, StreamingLlm

SOURCE = Source("tiny:llama")
CONTEXTS = torch.arange(2 * 50).reshape(2, 50) * 11 % 256


class Counting(KVCacheWorkload):
    """Rows of made-up ids."""

    def build(self, sources: Sources, seed: int) -> Built:
        def rows(count: int, length: int, first: int) -> list[list[int]]:
            return ((torch.arange(count * length).reshape(count, length) * 13 + first) % 256).tolist()

        tokens = self.context + self.new_tokens
        return {"scored": rows(self.items, tokens, 0), "timed": rows(self.timed_contexts, self.context, 5)}


WORKLOAD = Counting(context=60, new_tokens=12, items=3, timed_contexts=5, batch=2)


def score(technique: Any, workload: Counting = WORKLOAD, reference: Quality | None = None) -> Quality:
    prepared = technique.prepare(Sources(SOURCE))
    built = workload.build(Sources(SOURCE), 0)
    return workload.quality(technique, prepared, built, 0, SOURCE, reference)


def test_steps_are_a_prefill_and_one_step_per_token():
    technique = FullCache()
    prepared = technique.prepare(Sources(SOURCE))
    steps = list(technique.steps(prepared, KVCacheJob(contexts=CONTEXTS, max_new_tokens=5)))
    assert [step.kind for step in steps] == ["prefill"] + ["decode"] * 4
    assert [step.tokens for step in steps] == [2] * 5
    for step in steps:
        assert [tuple(row.shape) for row in step.outputs] == [(1,), (1,)]
        assert {row.untyped_storage().nbytes() for row in step.outputs} == {8}


def test_no_mode_is_held_between_steps_and_the_cache_is_let_go():
    technique = StreamingLlm(window=8)
    prepared = technique.prepare(Sources(SOURCE))
    steps = technique.steps(prepared, KVCacheJob(contexts=CONTEXTS, max_new_tokens=3))
    for _ in steps:
        assert not torch.is_inference_mode_enabled()
        held = {id(t) for t in prepared.holdings()["kv_cache"]}
        assert held == {id(t) for t in kv.tensors(prepared.cache)}
        assert held
    assert prepared.holdings()["kv_cache"] == []
    prepared.close()
    assert prepared.cache is None


def test_logprobs_are_the_models_where_nothing_is_evicted():
    technique = FullCache()
    prepared = technique.prepare(Sources(SOURCE))
    model: Any = prepared.model
    with torch.inference_mode():
        logits = model(input_ids=CONTEXTS, use_cache=False).logits
    expected = logits[:, 29:-1].log_softmax(-1).gather(-1, CONTEXTS[:, 30:, None])[..., 0]
    got = technique.logprobs(prepared, CONTEXTS, 30)
    assert got.shape == (2, 20)
    assert (got - expected).abs().max() < 1e-5
    scores = technique.score(prepared, CONTEXTS, 30)
    assert torch.equal(scores.hits, logits[:, 29:-1].argmax(-1) == CONTEXTS[:, 30:])
    assert torch.equal(scores.logprobs, got)
    assert scores.divergences is None


def test_divergence_from_the_full_cache_by_hand():
    technique = StreamingLlm(window=8)
    prepared = technique.prepare(Sources(SOURCE))
    model: Any = prepared.model
    with torch.inference_mode():
        plain = model(input_ids=CONTEXTS, use_cache=False).logits[:, 29:-1]
        full = full_logits(model, CONTEXTS, 30)
        cache = technique.cache(prepared, 2, 30, 20)
        parts = [kv.read(model, CONTEXTS[:, :30], cache)]
        parts += [kv.read(model, CONTEXTS[:, place : place + 1], cache) for place in range(30, 49)]
    own = torch.cat(parts, 1)
    assert (full - plain).abs().max() < 1e-4
    scores = technique.score(prepared, CONTEXTS, 30, full)
    expected = kl_divergence(Categorical(logits=plain.double()), Categorical(logits=own.double()))
    other_way = kl_divergence(Categorical(logits=own.double()), Categorical(logits=plain.double()))
    assert scores.divergences is not None
    assert (scores.divergences - expected).abs().max() < 2e-6
    assert (scores.divergences - other_way).abs().max() > 2e-5
    assert scores.divergences[:, 0].abs().max() < 1e-5, "before anything is evicted"
    assert scores.divergences[:, 1:].max() > 1e-3
    assert torch.equal(scores.agreements, own.argmax(-1) == plain.argmax(-1))


def test_the_rise_of_a_long_continuation_is_its_end_less_its_beginning():
    workload = Counting(context=20, new_tokens=256, items=2, timed_contexts=1)
    technique = FullCache()
    found = score(technique, workload)
    prepared = technique.prepare(Sources(SOURCE))
    ids = torch.tensor(workload.build(Sources(SOURCE), 0)["scored"])
    losses = -technique.logprobs(prepared, ids, 20)
    expected = losses[:, 192:].mean(1) - losses[:, :64].mean(1)
    assert found.metrics["nll_rise"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert abs(found.metrics["nll_rise"][0]) > 1e-3
    assert "nll_rise" not in score(technique).metrics, "a short one has no such ends"


def test_a_question_is_read_one_by_one_behind_the_eviction():
    technique = StreamingLlm(window=8)
    prepared = technique.prepare(Sources(SOURCE))
    job = KVCacheJob(contexts=CONTEXTS[:, :40], questions=CONTEXTS[:, 40:], max_new_tokens=6)
    assert job.late == 10
    made = torch.tensor(technique.generate(prepared, job).outputs)
    assert made.shape == (2, 6)
    # reading what it wrote behind the same context, each token is its first choice
    written = torch.cat([CONTEXTS, made], 1)
    late, at_once = (technique.score(prepared, written, context) for context in (40, 50))
    assert late.hits[:, 10:].all()
    assert (late.logprobs[:, 10:] - at_once.logprobs).abs().max() > 1e-3
    kinds = [step.kind for step in technique.steps(prepared, job)]
    assert kinds == ["prefill"] + ["decode"] * 5


def test_a_question_changes_nothing_for_a_cache_that_forgets_nothing():
    technique = FullCache()
    prepared = technique.prepare(Sources(SOURCE))
    late = KVCacheJob(contexts=CONTEXTS[:, :40], questions=CONTEXTS[:, 40:], max_new_tokens=6)
    at_once = KVCacheJob(contexts=CONTEXTS, max_new_tokens=6)
    one, other = (technique.generate(prepared, job) for job in (late, at_once))
    assert one == other


def test_rows_of_a_batch_are_independent():
    technique = StreamingLlm(window=8)
    prepared = technique.prepare(Sources(SOURCE))
    both = technique.generate(prepared, KVCacheJob(contexts=CONTEXTS, max_new_tokens=9)).outputs
    apart = [
        technique.generate(prepared, KVCacheJob(contexts=row[None], max_new_tokens=9)).outputs[0] for row in CONTEXTS
    ]
    assert both == apart


def test_quality_of_the_baseline():
    quality = score(FullCache())
    assert {name: len(values) for name, values in quality.metrics.items()} == dict.fromkeys(
        ("nll", "next_token_accuracy", "step_divergence", "step_agreement", "token_agreement"), 3
    )
    for name in quality.metrics:
        assert metric(name).axis == "quality"
    assert [len(output) for output in quality.outputs] == [12] * 3
    assert quality.metrics["token_agreement"] == quality.metrics["step_agreement"] == [1.0] * 3
    assert max(map(abs, quality.metrics["step_divergence"])) < 1e-5
    assert [step for step, _ in quality.curves["divergence_from_the_full_cache"]] == list(range(12))
    assert {gate.name: gate.passed for gate in quality.gates} == dict.fromkeys(
        ("finite", "length", "mask_oracle"), True
    )
    # 3 layers, 2 rows, 2 heads of 16, keys and values, float32, 72 tokens
    assert quality.counts == {"kv_cache_bytes": 3 * 2 * 2 * 16 * 2 * 4 * 72, "kept_tokens": 71, "seen_tokens": 71}
    assert len(quality.texts) == 2
    quality.to_json()


def test_quality_of_an_evicting_cache_beside_the_baseline():
    base = score(FullCache())
    quality = score(StreamingLlm(window=8), reference=base)
    assert quality.counts["kept_tokens"] == 12
    assert quality.counts["kv_cache_bytes"] == 3 * 2 * 2 * 16 * 4 * (2 * 12 + 4)
    assert quality.metrics["nll"] != base.metrics["nll"]
    assert min(quality.metrics["step_divergence"]) > 1e-4
    assert quality.curves["divergence_from_the_full_cache"][0][1] < 1e-5
    assert all(gate.passed for gate in quality.gates)
    assert "50 tokens were hidden" not in quality.gates[2].detail
    assert "up to 59 tokens were hidden" in quality.gates[2].detail
    assert all(0 <= share <= 1 for share in quality.metrics["token_agreement"])


def test_items_do_not_depend_on_the_batch():
    alone = score(StreamingLlm(window=8), WORKLOAD.model_copy(update={"batch": 1}))
    together = score(StreamingLlm(window=8))
    assert alone.outputs == together.outputs
    assert alone.metrics["nll"] == pytest.approx(together.metrics["nll"], abs=1e-5)


def test_of_a_long_context_the_oracle_reads_the_first_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_cache_workload, "GATE_CONTEXT", 40)
    gate = score(StreamingLlm(window=8)).gates[2]
    assert gate.passed
    assert gate.detail.startswith("11 steps behind 40 tokens in float32")
    assert "up to 39 tokens were hidden" in gate.detail


def test_a_wrong_cache_fails_its_gate():
    class Dropper(StreamingLayer):
        def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*args, **kwargs)
            return (keys, values) if keys.shape[-2] > 12 else (keys[:, :, 1:], values[:, :, 1:])

    class Wrong(StreamingLlm):
        def cache(self, *args: Any) -> Any:
            cache = super().cache(*args)
            for layer in cache.layers:
                layer.__class__ = Dropper
            return cache

    gates = {gate.name: gate.passed for gate in score(Wrong(window=8)).gates}
    assert gates == {"finite": True, "length": True, "mask_oracle": False}


def test_a_model_outside_the_interface_is_ungated(monkeypatch: pytest.MonkeyPatch):
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "_can_set_attn_implementation", lambda self: False)
    assert [gate.name for gate in score(FullCache()).gates] == ["finite", "length"]


def test_bursts_are_distinct_and_repeat():
    built = WORKLOAD.build(Sources(SOURCE), 0)
    jobs = [WORKLOAD.burst(built, index, 0, "cpu") for index in range(3)]
    assert [job.contexts.shape for job in jobs] == [(2, 60)] * 3
    rows = [tuple(row.tolist()) for job in jobs for row in job.contexts]
    assert len(set(rows)) == 5
    assert torch.equal(jobs[1].contexts, WORKLOAD.burst(built, 1, 0, "cpu").contexts)


def test_work_grows_with_what_is_asked():
    _, burst, quality = WORKLOAD.work()
    assert (burst.prefill, burst.decode) == (2 * 60, 2 * 12)
    assert quality.decode >= 2 * 3 * 12


def test_a_batch_needs_as_many_contexts():
    with pytest.raises(ValidationError, match="timed_contexts=2 does not fill a batch of 3; give at least 3"):
        Counting(timed_contexts=2, batch=3)


class Uneven(Counting):
    """Contexts of different lengths."""

    def build(self, sources: Sources, seed: int) -> Built:
        built = super().build(sources, seed)
        rng = random.Random(seed)
        return {name: [row[self.context - self.length(rng) :] for row in rows] for name, rows in built.items()}


UNEVEN = Uneven(context=60, shortest=24, new_tokens=12, items=5, timed_contexts=5, batch=3)


@pytest.mark.parametrize(
    "technique",
    [FullCache(), StreamingLlm(window=8), StreamingLlm(ratio=0.3), FastGen(recovery=0.7), Kivi(residual=32)],
    ids=repr,
)
def test_contexts_of_different_lengths_are_scored_as_alone(technique: Any):
    alone = score(technique, UNEVEN.model_copy(update={"batch": 1}))
    together = score(technique, UNEVEN)
    assert alone.outputs == together.outputs
    assert set(alone.metrics) == set(together.metrics)
    for name, values in alone.metrics.items():
        assert values == pytest.approx(together.metrics[name], abs=1e-5), name
    for name in ("kept_tokens", "seen_tokens"):
        assert alone.counts[name] == pytest.approx(together.counts[name])
    lengths = [len(row) for row in UNEVEN.build(Sources(SOURCE), 0)["scored"]]
    assert len(set(lengths)) > 2
    assert together.counts["seen_tokens"] == pytest.approx(sum(lengths) / 5 - 1)
    assert all(gate.passed for gate in together.gates)
    assert len(together.gates) == 3


def test_timed_contexts_of_a_batch_are_padded_to_its_longest():
    built = UNEVEN.build(Sources(SOURCE), 0)
    job = UNEVEN.burst(built, 1, 0, "cpu")
    rows = [built["timed"][index] for index in (3, 4, 0)]
    assert job.padding is not None
    assert job.contexts.shape == (3, max(map(len, rows)))
    assert [row[pad:] for row, pad in zip(job.contexts.tolist(), job.padding.tolist(), strict=True)] == rows
    assert WORKLOAD.burst(WORKLOAD.build(Sources(SOURCE), 0), 0, 0, "cpu").padding is None


def test_the_shortest_context_is_not_the_longest():
    with pytest.raises(ValidationError, match="shortest=61 is above context=60"):
        Counting(context=60, shortest=61)


def test_the_smallest_has_no_longer_shortest_and_no_larger_batch():
    quick = Counting(context=2048, shortest=1024, batch=8, timed_contexts=8).quick()
    assert (quick.context, quick.shortest, quick.batch, quick.timed_contexts) == (256, 256, 3, 3)
    assert Counting(context=100, shortest=50).quick().shortest == 50
    assert Counting().quick().shortest is None
