from __future__ import annotations

import pytest
import torch

from bench.families.decoding import DecodingJob
from bench.models import Source, Sources
from techniques.decoding.autoregressive import Autoregressive
from techniques.decoding.prompt_lookup import PromptLookup, look_up


@pytest.mark.parametrize(
    ("ids", "ngram", "count", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, 2, [9, 1]),  # what followed, not the n-gram itself
        ([1, 2, 3, 9, 1, 2, 3], 3, 9, [9, 1, 2, 3]),  # up to the end of the text
        ([1, 2, 8, 8, 1, 2, 7, 7, 1, 2], 2, 2, [7, 7]),  # the latest of two matches
        ([5, 2, 8, 9, 6, 2], 3, 2, [8, 9]),  # a shorter n-gram where the longer ones fail
        ([4, 4, 4], 2, 2, [4]),  # overlapping itself
        ([1, 2, 3], 3, 4, []),  # even the last id is new
        ([1], 3, 4, []),
        ([1, 1], 3, 0, []),
    ],
)
def test_look_up(ids: list[int], ngram: int, count: int, expected: list[int]) -> None:
    assert look_up(torch.tensor(ids), ngram, count).tolist() == expected


def job(**changes: object) -> DecodingJob:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 256, (6,), generator=generator)
    prompts = (words.repeat(4), torch.randint(0, 256, (30,), generator=generator), torch.tensor([65]))
    return DecodingJob(prompts=prompts, max_new_tokens=40, **changes)


@pytest.mark.parametrize("model", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
@pytest.mark.parametrize("draft_tokens", [1, 3, 16])
def test_greedy_output_is_the_baselines(model: str, draft_tokens: int) -> None:
    sources = Sources(Source(model))
    base, _ = Autoregressive().generate(Autoregressive().prepare(sources), job())
    technique = PromptLookup(draft_tokens=draft_tokens)
    outputs, counts = technique.generate(technique.prepare(sources), job())
    assert outputs == base
    assert [len(o) for o in outputs] == [40] * 3
    accepted = sum(one["accepted"] for one in counts)
    assert accepted > 0, "nothing was ever accepted: the comparison shows nothing"
    assert sum(one["rounds"] for one in counts) + accepted == sum(len(o) - 1 for o in outputs)
