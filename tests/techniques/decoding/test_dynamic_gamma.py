from __future__ import annotations

import pytest
import torch

from bench.families.decoding import DecodingJob
from bench.models import Source, Sources
from techniques.decoding.dynamic_gamma import DynamicGamma, adapted

PROMPT = torch.arange(20) * 7 % 256


@pytest.mark.parametrize(
    ("length", "drafted", "accepted", "expected"),
    [(3, 3, 3, 5), (3, 3, 2, 2), (1, 1, 0, 1), (15, 15, 15, 16), (2, 1, 1, 4)],
)
def test_the_heuristic(length: int, drafted: int, accepted: int, expected: int) -> None:
    assert adapted(length, {"drafted": drafted, "accepted": accepted}, most=16) == expected


def drafted_per_round(technique: DynamicGamma, draft: str, prompts: int = 1) -> list[int]:
    sources = Sources(Source("tiny:llama"), {"draft": Source(draft, "draft")})
    job = DecodingJob(prompts=(PROMPT,) * prompts, max_new_tokens=40)
    steps = technique.steps(technique.prepare(sources), job)
    return [step.counts["drafted"] for step in steps if step.kind == "decode"]


def test_drafts_grow_while_all_is_accepted() -> None:
    lengths = drafted_per_round(DynamicGamma(draft_tokens=2, most=7), "tiny:llama")
    assert lengths[:4] == [2, 4, 6, 7]


def test_drafts_shrink_while_nothing_is() -> None:
    lengths = drafted_per_round(DynamicGamma(draft_tokens=5), "tiny:qwen3")
    assert lengths[:6] == [5, 4, 3, 2, 1, 1]


def test_what_was_learnt_of_one_prompt_is_not_carried_to_the_next() -> None:
    one = drafted_per_round(DynamicGamma(draft_tokens=5), "tiny:qwen3")
    assert drafted_per_round(DynamicGamma(draft_tokens=5), "tiny:qwen3", prompts=2) == one * 2


def test_the_token_that_stops_a_draft_is_verified_like_the_others() -> None:
    unsure = DynamicGamma(schedule="confidence", draft_tokens=8, threshold=0.999)
    assert set(drafted_per_round(unsure, "tiny:qwen3")) <= {1, 0}
    sure = DynamicGamma(schedule="confidence", draft_tokens=8, threshold=1e-6)
    assert drafted_per_round(sure, "tiny:llama")[0] == 8
