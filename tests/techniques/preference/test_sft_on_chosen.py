"""The baseline learns the chosen completions per token and never looks at the rejected ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.families.preference import Pair, PreferenceJob, collate
from bench.models import Source, Sources
from techniques.preference.dpo import Dpo
from techniques.preference.sft_on_chosen import SftOnChosen


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PAIRS = [Pair(prompt=ids(n, 4 + n), chosen=ids(n + 20, 7 - n), rejected=ids(n + 40, 5)) for n in range(4)]
OTHERS = [Pair(prompt=p["prompt"], chosen=p["chosen"], rejected=ids(99, 5)) for p in PAIRS]


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
def test_loss_is_the_librarys_on_the_completions(name: str):
    technique = SftOnChosen()
    prepared = technique.prepare(Sources(Source(name)))
    model: Any = Source(name).model()
    total, count = 0.0, 0
    for pair in PAIRS:
        text = torch.tensor([pair["prompt"] + pair["chosen"]])
        labels = text.clone()
        labels[0, : len(pair["prompt"])] = -100
        total += float(model(input_ids=text, labels=labels).loss.detach()) * len(pair["chosen"])
        count += len(pair["chosen"])
    loss = technique.batch_loss(prepared, collate(PAIRS, "cpu"))
    assert float(loss.detach()) == pytest.approx(total / count, abs=1e-5)


def test_rejected_completions_are_not_looked_at():
    curves = []
    for pairs in (PAIRS, OTHERS):
        technique = SftOnChosen(learning_rate=1e-3)
        prepared = technique.prepare(Sources(Source("tiny:llama")))
        rows: list[int] = []
        hook = lambda m, args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"]))  # noqa: E731
        handle = prepared.model.register_forward_pre_hook(hook, with_kwargs=True)
        job = PreferenceJob(batches=(collate(pairs, "cpu"),) * 4)
        curves.append([float(step.outputs[0]) for step in technique.steps(prepared, job)])
        handle.remove()
        assert rows == [4] * 4
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0]


def test_counts_the_chosen_tokens():
    technique = SftOnChosen()
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    job = PreferenceJob(batches=(collate(PAIRS, "cpu"),))
    assert [step.tokens for step in technique.steps(prepared, job)] == [7 + 6 + 5 + 4]


def test_policy_is_dpos():
    sources = Sources(Source("tiny:llama"), seed=3)
    ours, theirs = SftOnChosen().prepare(sources), Dpo().prepare(sources)
    named = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(parameter, named[name])
        assert parameter.requires_grad == named[name].requires_grad
