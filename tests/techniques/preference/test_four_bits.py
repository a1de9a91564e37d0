"""A policy of 4 bits is held to the 4-bit network that it starts from, never to the 16-bit one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bench.families.completions import completion_logprobs, picked_logprobs
from bench.families.preference import Pair, PreferenceJob, collate
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from benchmarks.preference.continuation_pairs import ContinuationPairs
from benchmarks.preference.controlled_sentiment import ControlledSentiment
from techniques.finetuning.core.lora import adapters_off
from techniques.finetuning.core.quantised_linear import Linear4bit
from techniques.finetuning.qlora import Qlora
from techniques.preference.dpo import Dpo
from techniques.preference.kto import Kto
from techniques.preference.ppo import Ppo
from techniques.preference.sft_on_chosen import SftOnChosen
from techniques.preference.simpo import Simpo

SOURCES = Sources(Source("tiny:llama", dtype="float32"))


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [Pair(prompt=ids(n, 4 + n), chosen=ids(n + 20, 7 - n), rejected=ids(n + 40, 3 + n)) for n in range(4)]
BATCH = collate(PAIRS, "cpu")


def arm(kind: type = Dpo, **values: Any) -> tuple[Any, TrainedPrepared]:
    technique = kind(policy="4bit", **values)
    return technique, technique.prepare(SOURCES)


def base_logprobs() -> torch.Tensor:
    """Of the completions, under the network that QLoRA makes of the same weights, adapters off."""
    network = Qlora().prepare(SOURCES).model
    with torch.no_grad(), adapters_off(network):
        return completion_logprobs(network, BATCH.texts)


@pytest.mark.parametrize("reference", ["adapters_off", "copy"])
def test_reference_is_the_4_bit_base(reference: str):
    technique, prepared = arm(reference=reference, learning_rate=1e-2)
    assert sum(isinstance(module, Linear4bit) for module in prepared.model.modules()) > 4
    losses = [float(step.outputs[0]) for step in technique.steps(prepared, PreferenceJob(batches=(BATCH,) * 4))]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01
    held = picked_logprobs(technique.reference_logits(prepared, BATCH.texts), BATCH.texts).sum(-1)
    assert torch.equal(held, base_logprobs())
    assert not torch.equal(technique.logprobs(prepared, BATCH.texts), held)
    with torch.no_grad():
        sixteen = completion_logprobs(SOURCES.target.model(), BATCH.texts)
    assert float((held - sixteen).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", [SftOnChosen, Simpo, Kto, Ppo])
def test_every_technique_of_the_family_has_one(kind: type):
    technique, prepared = arm(kind)
    assert technique.own_reference
    assert any(isinstance(module, Linear4bit) for module in prepared.model.modules())
    assert all(p.dtype == torch.float32 for p in prepared.trainable)


@pytest.mark.parametrize(("policy", "dtype"), [("4bit", "float32"), ("full", "bfloat16")])
def test_what_is_computed_before_is_of_its_own_start(policy: str, dtype: str):
    sources = Sources(Source("tiny:llama", dtype=dtype))
    workload = ContinuationPairs(items=4, steps=3, batch_size=2, pairs=6)
    built = workload.build(sources, 0)

    def losses(reference: str, given: bool = True) -> list[float]:
        technique = Dpo(policy=policy, reference=reference, learning_rate=1e-2)
        prepared = technique.prepare(sources)
        mine = workload.fitted(technique, prepared, built) if given else built
        job = workload.job(mine, 0, 3, 0, "cpu")
        return [float(step.outputs[0]) for step in technique.steps(prepared, job)]

    before = losses("precomputed")
    assert before[0] == pytest.approx(math.log(2), abs=1e-6)
    assert before == pytest.approx(losses("copy"), abs=1e-5)
    # what the untrained model made of them is another network's
    assert abs(losses("precomputed", given=False)[0] - math.log(2)) > 1e-5


def test_pairs_stay_as_they_were_built_for_all_others():
    workload = ContinuationPairs(items=4, steps=1, batch_size=2, pairs=4)
    built = workload.build(SOURCES, 0)
    for technique in (Dpo(reference="precomputed"), Dpo(policy="4bit"), Simpo(policy="4bit")):
        assert workload.fitted(technique, technique.prepare(SOURCES), built) is built


def test_only_adapters_and_4_bit_weights_are_held():
    _, prepared = arm()
    sixteen = Dpo().prepare(SOURCES)
    held, whole = (sum(t.nbytes for t in p.model.state_dict().values()) for p in (prepared, sixteen))
    assert held < whole
    assert "helper_weights" not in prepared.holdings()
    assert "helper_weights" in arm(reference="copy")[1].holdings()


def test_scored_from_its_own_start():
    workload = ContinuationPairs(items=4, steps=1, batch_size=2, pairs=4)
    built = workload.build(SOURCES, 0)
    technique, prepared = arm(learning_rate=1e-12)
    quality = workload.quality(technique, prepared, built, 0, SOURCES.target, None)
    assert all(gate.passed for gate in quality.gates), quality.gates
    # nothing was learned, so nothing was gained: over the 16-bit model there would be a difference
    assert quality.metrics["preference_margin"] == pytest.approx([0.0] * 4, abs=1e-4)


def test_divergence_is_from_its_own_start():
    workload = ControlledSentiment().quick()
    built = workload.build(SOURCES, 0)
    technique, prepared = arm(learning_rate=1e-12)
    quality = workload.quality(technique, prepared, built, 0, SOURCES.target, None)
    assert quality.metrics["kl"] == pytest.approx([0.0] * len(quality.metrics["kl"]), abs=1e-4)
    first, *_ = quality.curves["reward_over_kl"]
    # its own texts at the start, not those of the 16-bit model
    assert first[1] == pytest.approx(sum(quality.metrics["reward"]) / len(quality.metrics["reward"]), abs=1e-6)
