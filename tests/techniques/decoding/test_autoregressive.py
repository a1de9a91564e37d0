from __future__ import annotations

import pytest
import torch

from bench.errors import Unsupported
from bench.families.decoding import DecodingJob
from bench.models import Source, Sources
from techniques.decoding.autoregressive import Autoregressive


@pytest.mark.parametrize("model", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
def test_greedy_equals_the_library(model: str) -> None:
    prepared = Autoregressive().prepare(Sources(Source(model)))
    prompt = torch.arange(40, 70)
    ((output,), _) = Autoregressive().generate(prepared, DecodingJob(prompts=(prompt,), max_new_tokens=25))
    expected = prepared.model.generate(
        prompt[None], max_new_tokens=25, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert output == expected[0, len(prompt) :].tolist()


def test_sampling_depends_on_seed_and_item_alone() -> None:
    prepared = Autoregressive().prepare(Sources(Source("tiny:llama")))
    prompts = (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))

    def sample(seed: int, chosen: tuple[torch.Tensor, ...]) -> list[list[int]]:
        torch.rand(3)
        job = DecodingJob(prompts=chosen, max_new_tokens=12, temperature=1.0, seed=seed)
        return Autoregressive().generate(prepared, job)[0]

    assert sample(0, prompts) == sample(0, prompts)
    assert sample(0, prompts)[0] == sample(0, prompts[:1])[0]
    assert sample(0, prompts) != sample(1, prompts)


def test_a_text_beyond_the_context_is_refused() -> None:
    prepared = Autoregressive().prepare(Sources(Source("tiny:llama")))
    job = DecodingJob(prompts=(torch.zeros(2040, dtype=torch.long),), max_new_tokens=9)
    with pytest.raises(Unsupported, match="2049 tokens do not fit the model's context of 2048"):
        next(Autoregressive().steps(prepared, job))
