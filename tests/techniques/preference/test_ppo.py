"""PPO finds the policy that is known to be best, scores what it wrote itself, and is the reference where it starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bench.errors import BenchError, Unsupported
from bench.families.preference import Pair, PreferenceJob, collate
from bench.families.rollout import Rollout, permitted
from bench.families.training import TrainedPrepared
from bench.models import Source, Sources
from bench.technique import unmarked
from techniques.preference.ppo import Ppo

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
EOS = 257
ALLOWED = [65, 66, 67, 68]
DECODE = Source("tiny:llama").tokenizer.decode


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [Pair(prompt=ids(n, 3 + n), chosen=ids(n + 20, 4), rejected=ids(n + 40, 4)) for n in range(3)]
BATCH = collate(PAIRS, "cpu")


def rules(limit: int, allowed: list[int], reward: Any) -> Rollout:
    stop = EOS if EOS in allowed else None
    return Rollout(limit, stop, torch.tensor(sorted(set(range(264)) - set(allowed))), reward)


COUNTS = rules(6, [*range(256), EOS], lambda text: 0.1 * len(text))


def arm(name: str = "tiny:llama", **values: Any) -> tuple[Ppo, TrainedPrepared]:
    technique = Ppo(**values)
    return technique, technique.prepare(Sources(Source(name)))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_it_ends_at_the_best_policy_there_is(beta: float):
    # one token, four of them: the optimum is pi_ref exp(r / beta) / Z
    worth = {DECODE([token]): reward for token, reward in zip(ALLOWED, (0.0, 0.5, 1.0, -0.5), strict=True)}
    given = rules(1, ALLOWED, lambda text: worth[text])
    prompt = [1, 2, 3]
    batch = collate([Pair(prompt=prompt, chosen=[65], rejected=[66])] * 16, "cpu")
    technique, prepared = arm(
        policy="full", reference="copy", learning_rate=3e-3, beta=beta, kl_gain=0.0, completions=8, epochs=2
    )
    list(technique.steps(prepared, PreferenceJob(batches=(batch,) * 40, rollout=given)))

    def law(model: Any) -> torch.Tensor:
        return permitted(model(torch.tensor([prompt])).logits[0, -1].detach(), given.banned)[ALLOWED]

    best = (law(prepared.helpers[0]) + torch.tensor([0.0, 0.5, 1.0, -0.5]) / beta).softmax(-1)
    found = law(prepared.model).exp()
    assert float((found - best).abs().max()) < 0.06
    assert float((law(prepared.helpers[0]).exp() - best).abs().max()) > 0.15


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reference", ["adapters_off", "copy"])
def test_experience_is_of_what_was_written(name: str, reference: Any):
    technique, prepared = arm(name, reference=reference, completions=3, decay=1.0)
    with torch.no_grad():
        for parameter in prepared.trainable[:-2]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        prepared.model.get_submodule("value_head").bias.fill_(0.25)
    beta = float(prepared.state.beta)
    found = technique.experience(prepared, BATCH, COUNTS, torch.Generator().manual_seed(0), unmarked)
    start: Any = Source(name).model()
    mask = found.texts.completion
    assert found.texts.ids.shape[0] == 9
    divergences = []
    for row in range(9):
        length = int(mask[row].sum())
        completion = found.texts.ids[row, -mask.shape[1] :][mask[row]].tolist()
        prompt = PAIRS[row // 3]["prompt"]
        text = torch.tensor([prompt + completion])
        ours, theirs = (
            permitted(model(text).logits[0, len(prompt) - 1 : -1].detach(), COUNTS.banned).gather(
                -1, torch.tensor(completion)[:, None]
            )[:, 0]
            for model in (prepared.model, start)
        )
        torch.testing.assert_close(found.logprobs[row, :length], ours, atol=1e-4, rtol=1e-4)
        reward = 0.1 * len(DECODE(completion, skip_special_tokens=True))
        divergences.append(float((ours - theirs).sum()))
        # what follows from the first token on, undiscounted
        assert float(found.returns[row, 0]) == pytest.approx(reward - beta * divergences[-1], abs=1e-3)
        assert found.values[row, :length].tolist() == pytest.approx([0.25] * length, abs=1e-6)
        assert completion[-1] == EOS or length == 6
        assert EOS not in completion[:-1]
    assert found.tokens == int(mask.sum())
    mean = sum(divergences) / 9
    factor = 1 + 0.1 * min(max(mean / 3.0 - 1, -0.2), 0.2)
    assert float(prepared.state.beta) == pytest.approx(beta * factor, abs=1e-5)
    advantages = found.advantages[mask]
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)


def test_values_see_what_stands_before_a_token():
    technique, prepared = arm(completions=2)
    with torch.no_grad():
        prepared.model.get_submodule("value_head").weight.normal_(generator=torch.Generator().manual_seed(0))
    found = technique.experience(prepared, BATCH, COUNTS, torch.Generator().manual_seed(0), unmarked)
    inner: Any = prepared.model
    for row in range(6):
        prompt = PAIRS[row // 2]["prompt"]
        completion = found.texts.ids[row, -6:][found.texts.completion[row]].tolist()
        hidden = inner.model(torch.tensor([prompt + completion])).last_hidden_state[0, len(prompt) - 1 : -1]
        expected = inner.value_head(hidden)[:, 0].detach()
        torch.testing.assert_close(found.values[row, : len(completion)], expected, atol=1e-4, rtol=1e-4)


def test_loss_is_the_clipped_objective_and_the_weighted_loss_of_values():
    technique, prepared = arm(completions=2, value_weight=0.3, clip=0.1, value_clip=0.05)
    found = technique.experience(prepared, BATCH, COUNTS, torch.Generator().manual_seed(0), unmarked)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # far enough for both clips
        for parameter in prepared.trainable:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    inner: Any = prepared.model
    moved, missed, clipped = [], [], 0
    for row, length in enumerate(found.texts.completion.sum(-1).tolist()):
        prompt = PAIRS[row // 2]["prompt"]
        completion = found.texts.ids[row, -found.texts.completion.shape[1] :][:length].tolist()
        text = torch.tensor([prompt + completion])
        hidden = inner.model(text).last_hidden_state[0, len(prompt) - 1 : -1]
        laws = permitted(inner(text).logits[0, len(prompt) - 1 : -1].detach(), COUNTS.banned)
        for place, token in enumerate(completion):
            ratio = math.exp(float(laws[place, token] - found.logprobs[row, place]))
            gain, value = float(found.advantages[row, place]), float(inner.value_head(hidden[place]).detach())
            moved.append(min(ratio * gain, min(max(ratio, 0.9), 1.1) * gain))
            old, aim = float(found.values[row, place]), float(found.returns[row, place])
            near = min(max(value, old - 0.05), old + 0.05)
            missed.append(max((value - aim) ** 2, (near - aim) ** 2) / 2)
            clipped += near != value
    expected = -sum(moved) / len(moved) + 0.3 * sum(missed) / len(missed)
    assert clipped > 0
    assert float(technique.batch_loss(prepared, found).detach()) == pytest.approx(expected, abs=1e-4)


def test_a_step_is_a_batch_with_all_its_epochs():
    technique, prepared = arm(epochs=3, completions=2)
    assert prepared.optimizer is not None
    steps = list(technique.steps(prepared, PreferenceJob(batches=(BATCH, BATCH), rollout=COUNTS)))
    assert [step.kind for step in steps] == ["train", "train"]
    counted = {int(state["step"]) for state in prepared.optimizer.state.values()}
    assert counted == {6}
    for step in steps:
        assert step.counts["forward_texts"] == 6 * (2 + 3)
        assert step.counts["generated_tokens"] == step.tokens > 0


def test_value_head_is_trained_and_starts_at_nothing():
    technique, prepared = arm()
    head = prepared.model.get_submodule("value_head")
    assert all(float(p.detach().abs().sum()) == 0 and p.requires_grad for p in head.parameters())
    list(technique.steps(prepared, PreferenceJob(batches=(BATCH,), rollout=COUNTS)))
    assert any(float(p.detach().abs().sum()) > 0 for p in head.parameters())
    held = list(prepared.holdings()["adapters"])
    assert all(any(p is one for one in held) for p in head.parameters())


def test_draws_are_those_of_seed_and_step():
    def losses(first: int, count: int, seed: int) -> list[float]:
        technique, prepared = arm(learning_rate=1e-12)
        job = PreferenceJob(batches=(BATCH,) * count, first_step=first, seed=seed, rollout=COUNTS)
        return [float(step.tokens) + float(step.outputs[0]) for step in technique.steps(prepared, job)]

    whole = losses(0, 3, 0)
    assert losses(2, 1, 0)[0] == pytest.approx(whole[2], rel=1e-3)
    assert losses(0, 3, 0) == whole
    assert losses(0, 3, 1) != whole


def test_a_copy_and_adapters_off_train_the_same():
    curves = []
    for reference in ("adapters_off", "copy"):
        technique, prepared = arm(reference=reference, learning_rate=1e-3)
        job = PreferenceJob(batches=(BATCH,) * 3, rollout=COUNTS)
        curves.append([float(step.outputs[0]) for step in technique.steps(prepared, job)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_it_says_what_it_needs():
    technique, prepared = arm()
    with pytest.raises(Unsupported, match="workload with a reward"):
        next(technique.steps(prepared, PreferenceJob(batches=(BATCH,))))
    broken = rules(4, [*range(256), EOS], lambda text: math.nan)
    with pytest.raises(BenchError, match=r"reward of a completion of '.*' is nan"):
        next(technique.steps(prepared, PreferenceJob(batches=(BATCH,), rollout=broken)))
