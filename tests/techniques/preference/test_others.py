"""KTO, ORPO, SimPO and unlikelihood: what each sees of a batch, and that it learns what is wanted."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.errors import Unsupported
from bench.families.completions import completion_logprobs
from bench.families.preference import Pair, Preference, PreferenceJob, collate
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from techniques.finetuning.core.lora import LoraLinear
from techniques.preference.core.policy import ReferredTechnique
from techniques.preference.dpo import Dpo
from techniques.preference.kto import Kto, mismatched
from techniques.preference.orpo import Orpo
from techniques.preference.sft_on_chosen import SftOnChosen
from techniques.preference.simpo import Simpo
from techniques.preference.unlikelihood import Unlikelihood

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [Pair(prompt=ids(n, 4 + n), chosen=ids(n + 20, 7 - n), rejected=ids(n + 40, 3 + n)) for n in range(4)]
BATCH = collate(PAIRS, "cpu")


def prepared(technique: Preference, name: str = "tiny:llama", moved: float = 0.0) -> TrainedPrepared:
    """The policy; `moved` away from its start by that much noise in every adapter."""
    policy = technique.prepare(Sources(Source(name)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in policy.model.modules():
            if isinstance(module, LoraLinear):
                module.B.normal_(0.0, moved, generator=generator) if moved else None
    return policy


def alone(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """Log-probabilities of a completion's tokens, one text at a time."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].detach()
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0].tolist()


def graph(technique: Preference, policy: TrainedPrepared, batch: Any = BATCH) -> torch.Tensor:
    if isinstance(technique, ReferredTechnique):
        batch = technique.referred(policy, batch)
    return technique.batch_loss(policy, batch)


def loss(technique: Preference, policy: TrainedPrepared, batch: Any = BATCH) -> float:
    return float(graph(technique, policy, batch).detach())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reference", ["adapters_off", "copy"])
def test_kto_is_the_utility_against_completions_of_other_prompts(name: str, reference: Any):
    technique = Kto(beta=0.5, reference=reference)
    assert loss(technique, prepared(technique, name)) == pytest.approx(0.5, abs=1e-6)
    policy = prepared(technique, name, moved=0.3)
    start = Source(name).model()

    def ratio(prompt: list[int], completion: list[int]) -> float:
        return sum(alone(policy.model, prompt, completion)) - sum(alone(start, prompt, completion))

    texts = [(p["prompt"], p["chosen"]) for p in PAIRS] + [(p["prompt"], p["rejected"]) for p in PAIRS]
    others = [ratio(prompt, texts[row - 1][1]) for row, (prompt, _) in enumerate(texts)]
    anchor = max(0.0, sum(others) / 8)
    expected = [
        1 - 1 / (1 + math.exp(-0.5 * (1 if row < 4 else -1) * (ratio(*text) - anchor)))
        for row, text in enumerate(texts)
    ]
    assert loss(technique, policy) == pytest.approx(sum(expected) / 8, abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: the extra `trl`")
def test_kto_is_trls(tmp_path: Path):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    technique = Kto(beta=0.5, policy="full", reference="copy")
    policy = prepared(technique)
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-3)
    others = mismatched(BATCH.texts)
    for _ in range(5):  # towards the mismatched texts, so that the anchor is above 0 and counts
        (-completion_logprobs(policy.model, others).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        apart = completion_logprobs(policy.model, others) - completion_logprobs(policy.helpers[0], others)
    assert float(apart.mean()) > 0.1
    loss_of_ours = graph(technique, policy)
    ours = torch.autograd.grad(loss_of_ours, policy.trainable)
    tokenizer = Source("tiny:llama").tokenizer
    trainer = KTOTrainer(
        model=policy.model,
        ref_model=policy.helpers[0],
        args=KTOConfig(
            output_dir=str(tmp_path),
            beta=0.5,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            per_device_train_batch_size=2,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": "one", "completion": " two", "label": label} for label in (True, False)] * 2
        ),
        processing_class=tokenizer,
    )
    sides = [p["chosen"] for p in PAIRS] + [p["rejected"] for p in PAIRS]
    prompts = [p["prompt"] for p in PAIRS] * 2

    def rows(completions: list[list[int]], name: str) -> dict[str, torch.Tensor]:
        width = max(len(a) + len(b) for a, b in zip(prompts, completions, strict=True))
        found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "completion_mask": []}
        for prompt, completion in zip(prompts, completions, strict=True):
            pad = [0] * (width - len(prompt) - len(completion))
            found["input_ids"].append(prompt + completion + pad)
            found["attention_mask"].append([1] * (len(prompt) + len(completion)) + pad)
            found["completion_mask"].append([0] * len(prompt) + [1] * len(completion) + pad)
        return {name + key: torch.tensor(value) for key, value in found.items()}

    batch = {
        **rows(sides, ""),
        **rows([sides[-1], *sides[:-1]], "KL_"),
        "label": torch.tensor([True] * 4 + [False] * 4),
    }
    theirs = trainer._compute_loss(trainer.model, batch, False)
    torch.testing.assert_close(theirs, loss_of_ours.detach(), atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(theirs, policy.trainable), ours, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: the extra `trl`")
def test_simpo_and_the_odds_ratio_are_trls():
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    technique = Simpo(beta=2.5, gamma=0.7)
    policy = prepared(technique, moved=0.3)
    sides = [p["chosen"] for p in PAIRS] + [p["rejected"] for p in PAIRS]
    prompts = [p["prompt"] for p in PAIRS] * 2
    means: dict[Any, list[torch.Tensor]] = {CPOTrainer: [], ORPOTrainer: []}
    for prompt, completion in zip(prompts, sides, strict=True):
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        logits = policy.model(input_ids=ids).logits
        for trainer, found in means.items():
            found.append(trainer.get_batch_logps(logits, labels, average_log_prob=True))
    given: Any = SimpleNamespace(
        beta=2.5,
        simpo_gamma=0.7,
        alpha=0.0,
        label_smoothing=0.0,
        loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = CPOTrainer.cpo_loss(given, *torch.cat(means[CPOTrainer]).chunk(2))[0].mean()
    ours = technique.batch_loss(policy, BATCH)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    own = torch.autograd.grad(ours, policy.trainable)
    for one, other in zip(torch.autograd.grad(theirs, policy.trainable, retain_graph=True), own, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    # theirs is what is taken away from the likelihood
    ratio = -ORPOTrainer.odds_ratio_loss(given, *torch.cat(means[ORPOTrainer]).chunk(2))[0].mean()
    alone = Orpo(weight=2.5).batch_loss(policy, BATCH) - Orpo(weight=0.0).batch_loss(policy, BATCH)
    torch.testing.assert_close(ratio, alone, atol=1e-5, rtol=1e-5)
    own = torch.autograd.grad(alone, policy.trainable)
    for one, other in zip(torch.autograd.grad(ratio, policy.trainable), own, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_ktos_anchor_is_never_negative_and_has_no_gradient(monkeypatch: pytest.MonkeyPatch):
    from techniques.preference import kto

    seen = []
    real = kto.losses.kto
    monkeypatch.setattr(kto.losses, "kto", lambda h, w, anchor, b: seen.append(anchor) or real(h, w, anchor, b))
    technique = Kto()
    for moved in (0.0, 0.1, 0.2, 0.4):
        loss(technique, prepared(technique, moved=moved))
    assert all(float(anchor) >= 0 and not anchor.requires_grad for anchor in seen)
    assert any(float(anchor) == 0 for anchor in seen)


def test_mismatched_texts_are_whole_completions_behind_other_prompts():
    texts = mismatched(BATCH.texts)
    assert texts.attention is not None
    sides = [p["chosen"] for p in PAIRS] + [p["rejected"] for p in PAIRS]
    for row in range(8):
        expected = PAIRS[row % 4]["prompt"] + sides[row - 1]
        assert texts.ids[row][texts.attention[row]].tolist() == expected
        assert int(texts.completion[row].sum()) == len(sides[row - 1])
    model = Source("tiny:llama").model()
    found = completion_logprobs(model, texts)
    for row in range(8):
        assert float(found[row].detach()) == pytest.approx(
            sum(alone(model, PAIRS[row % 4]["prompt"], sides[row - 1])), abs=1e-4
        )


def test_kto_says_what_it_needs():
    technique = Kto()
    with pytest.raises(Unsupported, match="batch_size"):
        technique.referred(prepared(technique), collate(PAIRS[:1], "cpu"))


def test_a_step_of_kto_refers_before_its_one_pass_with_a_gradient():
    technique = Kto()
    policy = prepared(technique)
    inside: list[str] = []
    passes: list[tuple[str, bool]] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        inside.remove(name)

    policy.model.register_forward_pre_hook(lambda *_: passes.append((*inside, torch.is_grad_enabled())))
    list(technique.steps(policy, PreferenceJob(batches=(BATCH,), phase=phase)))
    # the texts and the mismatched ones under the reference, the mismatched ones under the policy
    assert passes == [("reference", False)] * 3 + [("forward", True)]


@pytest.mark.parametrize("name", MODELS)
def test_orpo_is_likelihood_and_odds(name: str):
    technique = Orpo(weight=0.7)
    policy = prepared(technique, name, moved=0.3)
    total, odds = 0.0, 0.0
    for pair in PAIRS:
        chosen, rejected = (alone(policy.model, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        total -= sum(chosen)
        p, q = (math.exp(sum(side) / len(side)) for side in (chosen, rejected))
        odds += math.log1p(q / (1 - q) / (p / (1 - p)))
    expected = total / BATCH.chosen_tokens + 0.7 * odds / 4
    assert loss(technique, policy) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_simpo_compares_means_per_token(name: str):
    technique = Simpo(beta=2.5, gamma=0.5)
    policy = prepared(technique, name, moved=0.3)
    expected = 0.0
    for pair in PAIRS:
        chosen, rejected = (alone(policy.model, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        margin = 2.5 * (sum(chosen) / len(chosen) - sum(rejected) / len(rejected)) - 0.5
        expected += math.log1p(math.exp(-margin)) / 4
    assert loss(technique, policy) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_unlikelihood_takes_every_token_of_the_rejected_side(name: str):
    technique = Unlikelihood(weight=0.4)
    policy = prepared(technique, name, moved=0.3)
    chosen = [lp for pair in PAIRS for lp in alone(policy.model, pair["prompt"], pair["chosen"])]
    rejected = [lp for pair in PAIRS for lp in alone(policy.model, pair["prompt"], pair["rejected"])]
    expected = -sum(chosen) / len(chosen) - 0.4 * sum(math.log1p(-math.exp(lp)) for lp in rejected) / len(rejected)
    assert loss(technique, policy) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("technique", [Orpo(weight=0.0), Unlikelihood(weight=0.0)])
def test_without_their_second_part_they_are_finetuning(technique: Preference):
    sft = SftOnChosen()
    assert loss(technique, prepared(technique)) == pytest.approx(loss(sft, prepared(sft)), abs=1e-6)


@pytest.mark.parametrize("technique", [Kto(learning_rate=1e-3), Orpo(learning_rate=1e-3), Simpo(learning_rate=1e-3)])
def test_chosen_gains_on_rejected(technique: Preference):
    policy = prepared(technique)
    before = technique.logprobs(policy, BATCH.texts)
    steps = list(technique.steps(policy, PreferenceJob(batches=(BATCH,) * 6)))
    gained = technique.logprobs(policy, BATCH.texts) - before
    assert float(steps[-1].outputs[0]) < float(steps[0].outputs[0])
    assert bool((gained[:4] > gained[4:]).all())


def test_unlikelihood_lowers_the_rejected_tokens():
    technique = Unlikelihood(learning_rate=3e-3, weight=1.0)
    policy = prepared(technique)
    before = technique.logprobs(policy, BATCH.texts)
    list(technique.steps(policy, PreferenceJob(batches=(BATCH,) * 10)))
    gained = technique.logprobs(policy, BATCH.texts) - before
    assert float(gained[:4].mean()) > 1
    assert float(gained[4:].mean()) < float(gained[:4].mean()) - 1


def gradients(technique: Preference, policy: TrainedPrepared, batch: Any) -> list[torch.Tensor]:
    return list(torch.autograd.grad(graph(technique, policy, batch), policy.trainable))


@pytest.mark.parametrize("technique", [Dpo(), Kto(), Simpo(), Orpo(weight=1.0), Unlikelihood(), SftOnChosen()])
def test_order_of_pairs_changes_nothing(technique: Preference):
    policy = prepared(technique, moved=0.3)
    # of four pairs turned about, each one's neighbour is the one it had: what KTO's anchor is made of stays
    order = [1, 2, 3, 0] if isinstance(technique, Kto) else [2, 0, 3, 1]
    turned = collate([PAIRS[place] for place in order], "cpu")
    assert loss(technique, policy, turned) == pytest.approx(loss(technique, policy), abs=1e-5)
    for one, other in zip(gradients(technique, policy, BATCH), gradients(technique, policy, turned), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("technique", [Kto(), Simpo(gamma=0.5)])
def test_equal_completions_have_no_gradient(technique: Preference):
    policy = prepared(technique, moved=0.3)
    same = collate([Pair(prompt=p["prompt"], chosen=p["chosen"], rejected=p["chosen"]) for p in PAIRS], "cpu")
    largest = max(float(one.abs().max()) for one in gradients(technique, policy, BATCH))
    assert max(float(one.abs().max()) for one in gradients(technique, policy, same)) < 1e-5 * largest


def test_equal_completions_leave_orpo_its_likelihood():
    same = collate([Pair(prompt=p["prompt"], chosen=p["chosen"], rejected=p["chosen"]) for p in PAIRS], "cpu")
    policy = prepared(Orpo(), moved=0.3)
    for one, other in zip(
        gradients(Orpo(weight=2.0), policy, same), gradients(Orpo(weight=0.0), policy, same), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
