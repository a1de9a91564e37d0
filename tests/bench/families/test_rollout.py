"""Completions follow the model's own law, and the KL divergence summed along them has the right mean."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.errors import BenchError, Unsupported
from bench.families import cache as kv
from bench.families import rollout as rollouts
from bench.families.completions import completion_logits
from bench.families.rollout import Rollout, distinct, divergence, drawn_ids, permitted, repetition, sample, scored
from bench.models import Source

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
STOP = 257


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [ids(1, 7), ids(2, 3), ids(3, 12), ids(4, 1)]


def sharpened(name: str, by: float = 5.0) -> Any:
    model = Source(name).model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= by
    return model


def rules(limit: int = 9, only: list[int] | None = None, stop: int | None = STOP) -> Rollout:
    allowed = set(only) if only else {*range(256), STOP}
    return Rollout(limit, stop, torch.tensor(sorted(set(range(264)) - allowed)), reward=len)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_any_length_are_drawn_as_if_alone_and_without_a_cache(name: str):
    model, given = sharpened(name), rules()
    found = sample(model, PROMPTS, given, torch.Generator().manual_seed(5))
    generator, texts = torch.Generator().manual_seed(5), [list(prompt) for prompt in PROMPTS]
    for _ in range(9):
        logits = torch.stack([model(torch.tensor([text])).logits[0, -1].detach() for text in texts])
        laws = permitted(logits, given.banned).double().exp().tolist()
        heights = torch.rand(len(texts), generator=generator, dtype=torch.float64).tolist()
        for text, law, height in zip(texts, laws, heights, strict=True):
            below = list(itertools.accumulate(law))
            text.append(next(token for token, sum_ in enumerate(below) if sum_ > height * below[-1]))
    for row, prompt in enumerate(PROMPTS):
        whole = texts[row][len(prompt) :]
        expected = whole[: whole.index(STOP) + 1] if STOP in whole else whole
        assert found[row] == expected


def test_a_completion_ends_with_its_end_of_text_id_or_at_the_limit():
    model = sharpened("tiny:llama", 1.0)
    # one token in five ends the text
    found = sample(model, [ids(n, 3) for n in range(40)], rules(12, [5, 6, 7, 8, STOP]), torch.Generator())
    lengths = [len(row) for row in found]
    assert all(STOP not in row[:-1] for row in found)
    assert all(len(row) == 12 or row[-1] == STOP for row in found)
    assert {1, 12} <= set(lengths)
    assert {token for row in found for token in row} == {5, 6, 7, 8, STOP}


def test_without_an_end_of_text_id_all_have_the_limit():
    found = sample(sharpened("tiny:llama", 1.0), PROMPTS, rules(5, [5, STOP], stop=None), torch.Generator())
    assert [len(row) for row in found] == [5] * 4


def test_drawing_follows_the_models_law():
    model = sharpened("tiny:llama", 8.0)
    allowed = [10, 20, 30, 40]
    expected = permitted(model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach(), rules(1, allowed).banned).exp()
    drawn = sample(model, [PROMPTS[0]] * 4000, rules(1, allowed), torch.Generator().manual_seed(0))
    for token in allowed:
        share = sum(row == [token] for row in drawn) / 4000
        p = float(expected[token])
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000) + 1e-9
    assert float(expected.max()) - float(expected[allowed].min()) > 0.05


def test_ids_are_drawn_by_their_probability_and_banned_ones_never():
    law = [0.0, 0.5, 0.0, 0.2, 0.3, 0.0]
    logprobs = torch.tensor(law).log().expand(40_000, -1)
    drawn = drawn_ids(logprobs, torch.Generator().manual_seed(0))
    assert drawn.shape == (40_000, 1)
    found = drawn.flatten().bincount(minlength=6) / 40_000
    assert found.tolist() == pytest.approx(law, abs=0.012)  # five standard errors
    assert [float(found[place]) for place in (0, 2, 5)] == [0.0] * 3


@pytest.mark.parametrize("keep", [1, 3])
def test_the_head_reads_whole_rows_and_is_not_copied_for_each(keep: int):
    # of a slice of several rows torch makes as many copies of the head's weight
    model: Any = Source("tiny:llama").model()
    ids = torch.randint(256, (3, 5), generator=torch.Generator().manual_seed(0))
    read: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: read.append(inputs[0]))
    sample(model, ids.tolist(), Rollout(2, None, torch.tensor([5]), len), torch.Generator().manual_seed(0))
    logits = kv.read(model, ids, kv.preallocated(model.config, 5), keep)
    assert [tensor.is_contiguous() for tensor in read] == [True] * 3
    assert [tensor.shape[1] for tensor in read] == [1, 1, keep]
    torch.testing.assert_close(logits, model(ids).logits[:, -keep:], atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_the_context_is_said():
    with pytest.raises(Unsupported, match="context"):
        sample(sharpened("tiny:llama"), PROMPTS, rules(3000), torch.Generator())


@pytest.mark.parametrize("name", MODELS)
def test_mean_of_the_summed_divergence_is_that_of_the_completions(name: str):
    policy, reference = sharpened(name, 4.0), sharpened(name, 3.0)
    allowed = [11, 22, 33, STOP]
    given = rules(3, allowed)
    every = [
        seq
        for length in (1, 2, 3)
        for seq in map(list, itertools.product(allowed, repeat=length))
        if STOP not in seq[:-1] and (length == 3 or seq[-1] == STOP)
    ]

    def logprob(model: Any, seq: list[int]) -> float:
        logits = model(torch.tensor([PROMPTS[0] + seq])).logits[0, len(PROMPTS[0]) - 1 : -1].detach()
        return float(permitted(logits, given.banned).gather(-1, torch.tensor(seq)[:, None]).sum())

    ours, theirs = ([logprob(model, seq) for seq in every] for model in (policy, reference))
    assert sum(map(math.exp, ours)) == pytest.approx(1.0, abs=1e-5)
    exact = sum(math.exp(p) * (p - q) for p, q in zip(ours, theirs, strict=True))
    each = divergence(
        lambda texts: completion_logits(policy, texts),
        lambda texts: completion_logits(reference, texts),
        [PROMPTS[0]] * len(every),
        every,
        given.banned,
        264,
    )
    assert sum(math.exp(p) * kl for p, kl in zip(ours, each, strict=True)) == pytest.approx(exact, rel=1e-4)
    assert exact > 1e-3
    assert all(kl >= -1e-6 for kl in each)


def test_divergence_depends_neither_on_the_batch_nor_on_padding(monkeypatch: pytest.MonkeyPatch):
    policy, reference = sharpened("tiny:llama", 4.0), sharpened("tiny:llama", 3.0)
    completions = [ids(7, 2), ids(8, 6), [STOP], ids(9, 4)]
    given = rules()

    def of(rows: list[int]) -> list[float]:
        return divergence(
            lambda texts: completion_logits(policy, texts),
            lambda texts: completion_logits(reference, texts),
            [PROMPTS[row] for row in rows],
            [completions[row] for row in rows],
            given.banned,
            264,
        )

    together = of([0, 1, 2, 3])
    assert [of([row])[0] for row in range(4)] == pytest.approx(together, abs=1e-4)
    monkeypatch.setattr(rollouts, "HELD_LOGITS", 264 * 6 * 3)
    assert of([0, 1, 2, 3]) == pytest.approx(together, abs=1e-4)
    unmoved = lambda texts: completion_logits(reference, texts)  # noqa: E731
    same = divergence(unmoved, unmoved, PROMPTS, completions, given.banned, 264)
    assert same == pytest.approx([0.0] * 4, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_named(bad: float):
    given = Rollout(4, None, torch.tensor([0]), reward=lambda text: bad if "two" in text else 1.0)
    assert scored(given, ["one", "three"], ["first", "second"]) == [1.0, 1.0]
    with pytest.raises(BenchError, match=r"reward of a completion of 'second' is .*finite.*'two words'"):
        scored(given, ["one", "two words"], ["first", "second"])
    known = replace(given, openings=("sec", "second", "first"))
    with pytest.raises(BenchError, match=r"of a completion of opening 2, 'second' is"):
        scored(known, ["one", "two words"], ["first", "second"])


def test_distinct_counts_pairs_over_all_completions():
    assert distinct([[1, 2, 3], [4, 5, 6]]) == 1.0
    # 1 2, 2 3, 1 2, 2 4: three of four
    assert distinct([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert distinct([[1, 2], [1, 2], [1, 2]]) == pytest.approx(1 / 3)
    # no pair spans two completions, and a short one has none
    assert distinct([[1], [2], [1, 2]]) == 1.0
    assert distinct([[1], []]) == 1.0


def test_repetition_counts_runs_of_three():
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2]) == 0.0
    # runs: 111 111 111
    assert repetition([1] * 5) == pytest.approx(2 / 3)
    # 123 231 312 123
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
