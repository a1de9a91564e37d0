from __future__ import annotations

import pytest
import torch

from bench import registry
from bench.errors import Unsupported
from bench.families.decoding import DecodingJob
from bench.models import Source, Sources
from techniques.decoding.autoregressive import Autoregressive
from techniques.decoding.bild import Bild, rolled_back

PROMPTS = (torch.arange(20) * 7 % 256, torch.tensor([65, 66]))
SOURCES = Sources(Source("tiny:llama"), {"draft": Source("tiny:qwen3", "draft")})


def texts(technique: object, sources: Sources = SOURCES) -> list[list[int]]:
    return technique.generate(technique.prepare(sources), DecodingJob(prompts=PROMPTS, max_new_tokens=20))[0]  # type: ignore[attr-defined]


def test_without_fallback_and_rollback_the_small_model_writes_alone() -> None:
    """But for the first token, of the prefill, and one of the target behind every ten."""
    small = texts(Autoregressive(), Sources(Source("tiny:qwen3")))
    own = texts(Bild(fallback=0.0, rollback=1e9, draft_tokens=19))
    job = DecodingJob(prompts=PROMPTS, max_new_tokens=20)
    for prompt, text, alone in zip(PROMPTS, own, small, strict=True):
        begun = torch.cat([prompt, torch.tensor(text[:1])])
        (rest,), _ = Autoregressive().generate(
            Autoregressive().prepare(Sources(Source("tiny:qwen3"))),
            DecodingJob(prompts=(begun,), max_new_tokens=job.max_new_tokens - 1),
        )
        assert text[1:19] == rest[:18]
        assert text != alone


def test_a_fallback_above_one_leaves_all_to_the_target() -> None:
    assert texts(Bild(fallback=1.1)) == texts(Autoregressive())


def test_a_rollback_of_zero_keeps_only_what_the_target_would_say() -> None:
    assert texts(Bild(fallback=0.0, rollback=0.0)) == texts(Autoregressive())


@pytest.mark.parametrize(
    ("drafted", "threshold", "expected"),
    [
        ([0, 1, 2], 5.0, ([0, 1, 2, 3], 3)),  # the target's own choices
        ([0, 2, 2], 1.0, ([0, 1], 1)),  # the earliest unwanted one is replaced, what follows is dropped
        ([0, 2, 2], 3.0, ([0, 2, 2, 3], 3)),  # improbable, but not improbable enough
        ([3, 2, 2], 1.0, ([0], 0)),
        ([], 1.0, ([0], 0)),
    ],
)
def test_rolled_back(drafted: list[int], threshold: float, expected: tuple[list[int], int]) -> None:
    logits = torch.eye(4) * 2.0  # the target says 0, 1, 2, 3; anything else costs 2.34 nat
    tokens, kept = rolled_back(logits[: len(drafted) + 1], torch.tensor(drafted, dtype=torch.long), threshold)
    assert (tokens.tolist(), kept) == expected


def test_a_token_that_is_the_targets_choice_is_kept_however_improbable() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, 5] = 0.01
    assert rolled_back(logits, torch.tensor([5]), 1.0)[1] == 1
    assert rolled_back(logits, torch.tensor([6]), 1.0)[1] == 0


def test_it_is_labelled_lossy_and_refuses_to_sample() -> None:
    assert not registry.techniques["bild"].cls.lossless
    technique = Bild()
    with pytest.raises(Unsupported, match="greedy"):
        technique.generate(technique.prepare(SOURCES), DecodingJob(prompts=PROMPTS, max_new_tokens=4, temperature=1.0))
