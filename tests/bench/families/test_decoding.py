from __future__ import annotations

import pytest
import torch

from bench.families.decoding import DecodingJob, first_divergence, greedy_gate
from bench.models import Source


def job(**options: object) -> DecodingJob:
    return DecodingJob(prompts=(), max_new_tokens=1, **options)


def test_distribution_top_k_and_top_p() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    p = logits.softmax(-1)
    assert job(temperature=0.0).distribution(logits).tolist() == [[1, 0, 0, 0]]
    assert torch.allclose(job(temperature=1.0).distribution(logits), p)
    assert torch.allclose(job(temperature=0.5).distribution(logits), (2 * logits).softmax(-1))
    k2 = job(temperature=1.0, top_k=2).distribution(logits)
    assert torch.allclose(k2, torch.tensor([[p[0, 0], 0, p[0, 2], 0]]) / (p[0, 0] + p[0, 2]))
    # the smallest set that holds the share: .64 alone does not hold .7, so the second belongs to it
    top_p = job(temperature=1.0, top_p=0.7).distribution(logits)
    assert torch.allclose(top_p, k2)
    assert job(temperature=1.0, top_p=0.6).distribution(logits).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("a", "b", "at"), [([1, 2], [1, 2], 2), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], 0), ([2], [1], 0)]
)
def test_first_divergence(a: list[int], b: list[int], at: int) -> None:
    assert first_divergence(a, b) == at


def greedy(model: torch.nn.Module, prompt: torch.Tensor, count: int) -> list[int]:
    ids = prompt.tolist()
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_greedy_gate_tells_a_tie_from_a_mistake(dtype: str) -> None:
    model = Source("tiny:llama", dtype=dtype).model()
    prompt = torch.arange(20)
    right = greedy(model, prompt, 6)
    task = DecodingJob(prompts=(prompt,), max_new_tokens=6)
    assert greedy_gate(model, task, [right], [right]).passed
    logits = model(torch.cat([prompt, torch.tensor(right[:2])])[None]).logits[0, -1]
    worst = int(logits.argmin())
    wrong = [*right[:2], worst, *right[3:]]
    gate = greedy_gate(model, task, [wrong], [right])
    assert not gate.passed
    assert f"token 2 is {worst} instead of {right[2]}" in gate.detail
    assert not greedy_gate(model, task, [right[:4]], [right]).passed


def test_the_greedy_gate_lets_a_tie_pass() -> None:
    model = Source("tiny:llama", dtype="float32").model()
    prompt = torch.arange(20)
    right = greedy(model, prompt, 4)
    twin = (right[1] + 1) % 256
    with torch.no_grad():  # make two output rows equal: their logits tie exactly
        model.lm_head.weight[twin] = model.lm_head.weight[right[1]]
    right = greedy(model, prompt, 4)
    other = [right[0], twin if right[1] != twin else (twin - 1) % 256, *right[2:]]
    gate = greedy_gate(model, DecodingJob(prompts=(prompt,), max_new_tokens=4), [other], [right])
    assert gate.passed
    assert "part at a tie" in gate.detail
