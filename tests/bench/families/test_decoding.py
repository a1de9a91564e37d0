from __future__ import annotations

import torch

from bench.families.decoding import DecodingJob


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
