from __future__ import annotations

import pytest
import torch

from bench.families.lossless import first_divergence, greedy_gate
from bench.models import Source


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
    task = (prompt,)
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
    gate = greedy_gate(model, (prompt,), [other], [right])
    assert gate.passed
    assert "part at a tie" in gate.detail
