"""DPO starts at ln 2, pulls apart what is chosen and rejected, and needs no second network for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bench.errors import Unsupported
from bench.families.completions import completion_logprobs
from bench.families.preference import Pair, PreferenceBatch, PreferenceJob, collate
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.probes.memory import bytes_held
from benchmarks.preference.continuation_pairs import ContinuationPairs
from techniques.finetuning.core.lora import adapters_off
from techniques.preference.dpo import Dpo

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [Pair(prompt=ids(n, 4 + n), chosen=ids(n + 20, 7 - n), rejected=ids(n + 40, 3 + n)) for n in range(4)]
BATCH = collate(PAIRS, "cpu")
JOB = PreferenceJob(batches=(BATCH,) * 5)


def arm(name: str = "tiny:llama", **values: Any) -> tuple[Dpo, TrainedPrepared]:
    technique = Dpo(**values)
    return technique, technique.prepare(Sources(Source(name)))


def loss_of(technique: Dpo, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
    return technique.batch_loss(prepared, technique.referred(prepared, batch))


def gradients(prepared: TrainedPrepared, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, prepared.trainable, retain_graph=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reference", ["adapters_off", "copy"])
def test_loss_starts_at_ln_2(name: str, reference: str):
    technique, prepared = arm(name, reference=reference)
    assert float(loss_of(technique, prepared, BATCH).detach()) == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_at_the_start(name: str):
    technique, prepared = arm(name, beta=0.4)
    found = gradients(prepared, loss_of(technique, prepared, BATCH))
    chosen, rejected = completion_logprobs(prepared.model, BATCH.texts).chunk(2)
    expected = [
        -(0.4 / 2) * (wanted - unwanted) / len(PAIRS)
        for wanted, unwanted in zip(gradients(prepared, chosen.sum()), gradients(prepared, rejected.sum()), strict=True)
    ]
    largest = max(float(e.abs().max()) for e in expected)
    assert largest > 1e-4
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * largest


@pytest.mark.parametrize("name", MODELS)
def test_copy_is_adapters_off_bit_for_bit(name: str):
    curves, ends = [], []
    for reference in ("adapters_off", "copy"):
        technique, prepared = arm(name, reference=reference, learning_rate=1e-3)
        curves.append([float(step.outputs[0]) for step in technique.steps(prepared, JOB)])
        ends.append([p.detach().clone() for p in prepared.trainable])
    assert curves[0] == curves[1]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert curves[0][-1] < math.log(2) - 0.01


def test_training_leaves_the_reference_where_it_was():
    technique, prepared = arm(learning_rate=1e-3)
    start = technique.logprobs(prepared, BATCH.texts)
    list(technique.steps(prepared, JOB))
    after = technique.logprobs(prepared, BATCH.texts)
    assert not torch.equal(after, start)
    with adapters_off(prepared.model):
        assert torch.equal(technique.logprobs(prepared, BATCH.texts), start)
    gained = after - start
    assert bool((gained[:4] > gained[4:]).all())


def test_only_a_copy_costs_memory():
    ways = ("adapters_off", "precomputed", "copy")
    none, known, copy = (bytes_held(arm(reference=reference)[1].holdings()) for reference in ways)
    assert none == known
    assert copy == {**none, "helper_weights": none["weights"]}
    _, prepared = arm(reference="copy")
    assert not any(p.requires_grad for p in prepared.helpers[0].parameters())


def test_equal_completions_have_no_gradient():
    same = [Pair(prompt=p["prompt"], chosen=p["chosen"], rejected=p["chosen"]) for p in PAIRS]
    technique, prepared = arm()
    batch = collate(same, "cpu")
    largest = max(float(g.abs().max()) for g in gradients(prepared, loss_of(technique, prepared, BATCH)))
    for gradient in gradients(prepared, loss_of(technique, prepared, batch)):
        assert float(gradient.abs().max()) < 1e-6 * largest


def test_swapping_the_pairs_turns_the_gradient_round():
    turned = collate([Pair(prompt=p["prompt"], chosen=p["rejected"], rejected=p["chosen"]) for p in PAIRS], "cpu")
    technique, prepared = arm()
    one = gradients(prepared, loss_of(technique, prepared, BATCH))
    other = gradients(prepared, loss_of(technique, prepared, turned))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, -b, atol=1e-6, rtol=1e-3)


def test_precomputed_reference_is_the_batchs_own():
    technique, prepared = arm(reference="precomputed")
    shifted = technique.logprobs(prepared, BATCH.texts)
    shifted[:4] += 10  # the policy has lost 10 nats on every chosen completion
    known = replace(BATCH, reference=shifted)
    assert float(loss_of(technique, prepared, known).detach()) == pytest.approx(math.log1p(math.exp(1.0)), abs=1e-5)
    # a live one does not look at it
    for reference in ("adapters_off", "copy"):
        technique, prepared = arm(reference=reference)
        assert float(loss_of(technique, prepared, known).detach()) == pytest.approx(math.log(2))
    technique, prepared = arm(reference="precomputed")
    with pytest.raises(Unsupported, match="reference=precomputed"):
        loss_of(technique, prepared, BATCH)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", ["adapters", "full"])
def test_all_ways_to_hold_the_reference_train_the_same_policy(name: str, policy: str):
    ways = ["copy", "precomputed"] + ["adapters_off"] * (policy == "adapters")
    start = Source(name).model()
    # known before, pair by pair, as it comes with the pairs
    with torch.no_grad():
        known = [completion_logprobs(start, collate([pair], "cpu").texts).tolist() for pair in PAIRS]
    job = PreferenceJob(batches=(collate(PAIRS, "cpu", known),) * 5)
    curves = []
    for reference in ways:
        technique, prepared = arm(name, reference=reference, policy=policy, learning_rate=1e-3)
        curves.append([float(step.outputs[0]) for step in technique.steps(prepared, job)])
        assert len(prepared.helpers) == (reference == "copy")
        assert ("adapters" in prepared.holdings()) == (policy == "adapters")
    assert curves[0][-1] < math.log(2) - 0.01
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=2e-5)


def test_a_full_policy_has_no_adapters_to_take_off():
    with pytest.raises(ValidationError, match="needs policy=adapters"):
        Dpo(policy="full")
    _, prepared = arm(policy="full", reference="copy")
    assert all(p.requires_grad for p in prepared.model.parameters())


def test_a_full_policy_of_16_bits_is_trained_in_float32():
    sources = Sources(Source("tiny:llama", dtype="bfloat16"))
    technique = Dpo(policy="full", reference="copy", learning_rate=1e-3)
    prepared = technique.prepare(sources)
    assert {p.dtype for p in prepared.model.parameters()} == {torch.float32}
    assert {p.dtype for p in prepared.helpers[0].parameters()} == {torch.float32}
    losses = [float(step.outputs[0]) for step in technique.steps(prepared, JOB)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6), "a network of 16 bits is another one than it starts from"
    assert losses[-1] < losses[0]


def test_reference_costs_one_pass_without_gradients_and_none_where_it_is_known():
    known = collate(PAIRS, "cpu", [[-9.0, -9.0]] * 4)
    for reference, passes in (("adapters_off", 2), ("copy", 1), ("precomputed", 1)):
        technique, prepared = arm(reference=reference)
        rows: list[int] = []
        hook = lambda m, args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"]))  # noqa: E731
        handle = prepared.model.register_forward_pre_hook(hook, with_kwargs=True)
        loss_of(technique, prepared, known).backward()
        handle.remove()
        # chosen and rejected in one
        assert rows == [8] * passes


@pytest.mark.parametrize("reference", ["adapters_off", "copy", "precomputed"])
def test_a_step_tells_what_the_reference_takes_of_it(reference: str):
    technique, prepared = arm(reference=reference)
    inside: list[str] = []
    passes: list[tuple[str, ...]] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        assert inside.pop() == name

    for network in (prepared.model, *prepared.helpers):
        network.register_forward_pre_hook(lambda *_: passes.append(tuple(inside)))
    known = collate(PAIRS, "cpu", [[-9.0, -9.0]] * 4)
    list(technique.steps(prepared, PreferenceJob(batches=(known,), phase=phase)))
    assert passes == [("reference",)] * (reference != "precomputed") + [("forward",)]


def test_label_smoothing_is_refused_where_it_is_not_read():
    with pytest.raises(ValidationError, match="label_smoothing is for cdpo and robust"):
        Dpo(loss="hinge", label_smoothing=0.1)
    assert Dpo(loss="cdpo", label_smoothing=0.1).label_smoothing == 0.1


STARTS = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "ipo": 25.0,
    "hinge": 1.0,
    "sppo": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
}


@pytest.mark.parametrize("preset", STARTS)
def test_every_loss_starts_where_its_formula_does(preset: str):
    assert set(STARTS) | {"rpo"} == {"dpo", *Dpo.presets}
    technique, prepared = arm(**Dpo.presets.get(preset, {}))
    assert float(loss_of(technique, prepared, BATCH).detach()) == pytest.approx(STARTS[preset], rel=1e-5)


def test_rpo_adds_the_chosen_likelihood_per_token():
    technique, prepared = arm(**Dpo.presets["rpo"])
    sums = technique.logprobs(prepared, BATCH.chosen)
    nll = sum(-float(total) / len(pair["chosen"]) for total, pair in zip(sums, PAIRS, strict=True)) / 4
    assert float(loss_of(technique, prepared, BATCH).detach()) == pytest.approx(math.log(2) + nll, abs=1e-5)


def test_counts_the_tokens_of_both_sides():
    technique, prepared = arm()
    assert next(technique.steps(prepared, JOB)).tokens == sum(len(p["chosen"]) + len(p["rejected"]) for p in PAIRS)


def test_nothing_is_left_on_between_steps():
    technique, prepared = arm()
    for _ in technique.steps(prepared, JOB):
        assert torch.is_grad_enabled()
        enabled = technique.logprobs(prepared, BATCH.texts)
    with adapters_off(prepared.model):
        assert not torch.equal(technique.logprobs(prepared, BATCH.texts), enabled)


def test_parameters_survive_json():
    technique = Dpo(beta=0.5, reference="copy", targets=("q_proj",), loss="ipo")
    assert Dpo.model_validate_json(technique.model_dump_json()) == technique


# a reference of another kind


def other(name: str = "tiny:qwen3") -> Sources:
    return Sources(Source("tiny:llama"), {"reference": Source(name, "reference")})


@pytest.mark.parametrize("policy", ["adapters", "full"])
def test_held_to_another_network(policy: str):
    technique = Dpo(reference="model", policy=policy, beta=0.3)
    prepared = technique.prepare(other())
    theirs = completion_logprobs(Source("tiny:qwen3").model(), BATCH.texts).detach()
    ours = completion_logprobs(Source("tiny:llama").model(), BATCH.texts).detach()
    chosen, rejected = (ours - theirs).chunk(2)
    expected = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()
    assert float(loss_of(technique, prepared, BATCH).detach()) == pytest.approx(float(expected), abs=1e-5)
    assert abs(float(expected) - math.log(2)) > 1e-3
    assert not any(p.requires_grad for p in prepared.helpers[0].parameters())


def test_margins_are_from_the_policys_own_start_whatever_it_is_held_to():
    workload = ContinuationPairs(items=4, steps=1, batch_size=2, pairs=4)
    sources = other()
    technique = Dpo(reference="model", learning_rate=1e-12)
    quality = workload.quality(
        technique, technique.prepare(sources), workload.build(sources, 0), 0, sources.target, None
    )
    assert all(gate.passed for gate in quality.gates), quality.gates
    assert quality.metrics["preference_margin"] == pytest.approx([0.0] * 4, abs=1e-4)


def test_a_reference_with_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch):
    sources = other()
    vocabulary = {**sources.target.tokenizer.get_vocab(), "more": 263}
    monkeypatch.setattr(sources.get("reference").tokenizer, "get_vocab", lambda: vocabulary)
    with pytest.raises(Unsupported, match=r"^reference tiny:qwen3 has another vocabulary than tiny:llama"):
        Dpo(reference="model").prepare(sources)


def test_a_reference_that_the_run_does_not_name():
    with pytest.raises(Unsupported, match="--reference ID_OR_PATH"):
        arm(reference="model")


def test_a_policy_of_4_bits_is_held_to_its_own_network():
    with pytest.raises(ValidationError, match="reference=model is held in 16 bits"):
        Dpo(policy="4bit", reference="model")
