from __future__ import annotations

import math

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
    assert counts["accepted"] > 0, "nothing was ever accepted: the comparison shows nothing"
    assert counts["steps"] + counts["accepted"] == sum(len(o) - 1 for o in outputs)


def test_stop_ids_inside_a_draft_end_the_text() -> None:
    sources = Sources(Source("tiny:llama"))
    base, _ = Autoregressive().generate(Autoregressive().prepare(sources), job())
    stop = frozenset({base[0][7]})
    expected, _ = Autoregressive().generate(Autoregressive().prepare(sources), job(stop_ids=stop))
    outputs, _ = PromptLookup().generate(PromptLookup().prepare(sources), job(stop_ids=stop))
    assert outputs == expected
    assert outputs[0][-1] in stop
    assert not stop & set(outputs[0][:-1])


def test_sampling_keeps_the_targets_law() -> None:
    """Two sampled ids behind a repetitive prompt: chi-square against the exact law, over 1,500 draws."""
    sources = Sources(Source("tiny:llama"))
    technique = PromptLookup(ngram=1, draft_tokens=4)
    prepared = technique.prepare(sources)
    prompt = torch.tensor([7, 7, 7, 7, 9, 7, 7, 7])
    options = {"max_new_tokens": 3, "temperature": 0.7, "top_k": 3}
    law = {}
    reference = DecodingJob(prompts=(prompt,), **options)
    with torch.inference_mode():

        def next_law(ids: list[int]) -> dict[int, float]:
            logits = prepared.model(torch.tensor([ids])).logits[0, -1]
            probabilities = reference.distribution(logits)
            return {i: float(probabilities[i]) for i in probabilities.nonzero()[:, 0].tolist()}

        start = prompt.tolist()
        for a, pa in next_law(start).items():
            for b, pb in next_law([*start, a]).items():
                for c, pc in next_law([*start, a, b]).items():
                    law[a, b, c] = pa * pb * pc
    draws = 1500
    seen: dict[tuple[int, ...], int] = {}
    accepted = 0
    for seed in range(draws // 50):
        outputs, counts = technique.generate(prepared, DecodingJob(prompts=(prompt,) * 50, seed=seed, **options))
        accepted += counts["accepted"]
        for output in outputs:
            seen[tuple(output)] = seen.get(tuple(output), 0) + 1
    assert set(seen) <= set(law), "an id outside top-k was emitted"
    assert accepted > draws / 20
    chi2 = sum((seen.get(k, 0) - draws * p) ** 2 / (draws * p) for k, p in law.items())
    degrees = len(law) - 1
    # Wilson-Hilferty: z below 3.3 is one false alarm in 2,000, and the seeds are fixed
    z = ((chi2 / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    assert z < 3.3, (chi2, degrees)
