"""What every way of decoding must do: the baseline's text greedily, the target's law with sampling, whatever drafts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from sampled import Near, law_of, z_of
from torch import nn

from bench import embedded, embedded_draft, registry
from bench.errors import Unsupported, UsageError
from bench.families.decoding import Decoding, DecodingJob, StopStrings
from bench.models import Source, Sources
from techniques.decoding.autoregressive import Autoregressive

TARGETS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
PEERS = ["hf_generate", "hf_assisted", "hf_prompt_lookup"]
DRAFTED = [
    "speculative",
    "block_verification",
    "dynamic_gamma",
    "confidence_stop",
    "spectr",
    "tree",
    "tree_confident",
    "early_exit",
    "hf_assisted",
]
LOSSLESS = [*DRAFTED, "prompt_lookup", "hf_generate", "hf_prompt_lookup"]
BATCHED = ["autoregressive", "speculative", "block_verification", "prompt_lookup"]


@dataclass(frozen=True)
class Contrary(Source):
    """The same model with its head turned round: what it likes best is what the model likes least."""

    def model(self, **options: Any) -> Any:
        model = super().model(**options)
        head = nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
        head.weight.data = -model.lm_head.weight.data
        model.lm_head = head
        return model


@cache
def sources(target: str, draft: str) -> Sources:
    drafts = {
        "itself": lambda: Source(target, "draft"),
        "random": lambda: Source("tiny:qwen3" if target != "tiny:qwen3" else "tiny:llama", "draft"),
        "near": lambda: Near(target, "draft"),
        "always wrong": lambda: Contrary(target, "draft"),
    }
    return Sources(Source(target), {"draft": drafts[draft]()})


def technique(name: str, **parameters: Any) -> Decoding:
    found = registry.techniques[name]
    return found.cls(**{**found.parameters, **parameters})


def prompts() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 256, (6,), generator=generator)
    return (words.repeat(4), torch.randint(0, 256, (30,), generator=generator), torch.tensor([65]))


def job(**changes: Any) -> DecodingJob:
    return DecodingJob(**{"prompts": prompts(), "max_new_tokens": 24, **changes})


def generated(one: Decoding, these: Sources, what: DecodingJob) -> tuple[list[list[int]], Counter[str]]:
    prepared = one.prepare(these)
    outputs, counts = one.generate(prepared, what)
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    prepared.close()
    return outputs, total


@cache
def baseline(target: str, stop: frozenset[int] = frozenset()) -> list[list[int]]:
    return generated(Autoregressive(), sources(target, "itself"), job(stop_ids=stop))[0]


@pytest.mark.parametrize("draft", ["itself", "random", "always wrong"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_greedy_output_is_the_baselines(name: str, target: str, draft: str) -> None:
    if name not in DRAFTED and draft != "itself":
        return
    outputs, counts = generated(technique(name), sources(target, draft), job())
    assert outputs == baseline(target)
    if name in PEERS:
        return
    assert counts["accepted"] + counts["rounds"] == sum(len(o) - 1 for o in outputs), "a round emits one of its own"
    if draft == "always wrong" and name not in {"early_exit", "prompt_lookup", "tree", "tree_confident"}:
        assert counts["accepted"] == 0
    if draft == "itself" and name in {"speculative", "block_verification", "spectr", "dynamic_gamma", "tree"}:
        assert counts["accepted"] == counts["drafted"] > 0, "what the model says itself is never rejected"


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_text_ends_at_its_end_token_inside_a_draft(name: str) -> None:
    stop = frozenset({baseline("tiny:llama")[0][7], baseline("tiny:llama")[1][2]})
    expected = baseline("tiny:llama", stop)
    outputs, _ = generated(technique(name), sources("tiny:llama", "itself"), job(stop_ids=stop))
    assert outputs == expected
    assert any(len(o) < 24 for o in outputs)
    assert not any(stop & set(o[:-1]) for o in outputs)


class Digits:
    """Writes an id as three digits, so that a string may end inside a token."""

    @staticmethod
    def decode(ids: list[int]) -> str:
        return "".join(f"{token:03d}" for token in ids)


@pytest.mark.parametrize("name", sorted(set(LOSSLESS) - set(PEERS)))
def test_a_text_ends_where_a_string_is_complete(name: str) -> None:
    first, second, _ = baseline("tiny:llama")
    strings = (Digits.decode(first[6:8])[1:4], Digits.decode(second[4:6])[2:5])
    stop = StopStrings(strings, Digits)
    expected = [
        next((one[:end] for end in range(1, 25) if any(s in Digits.decode(one[:end]) for s in strings)), one)
        for one in baseline("tiny:llama")
    ]
    assert 1 < len(expected[1]) < 24
    for draft in ("itself", "random"):
        outputs, _ = generated(technique(name), sources("tiny:llama", draft), job(stop_strings=stop))
        assert outputs == expected


@pytest.mark.parametrize("name", PEERS)
def test_the_librarys_texts_end_there_too(name: str) -> None:
    these = sources("tiny:llama", "itself")
    asking = job(prompts=(torch.tensor([66, 45]), torch.tensor([68, 59])))
    texts, _ = generated(Autoregressive(), these, asking)
    tokenizer = these.target.tokenizer
    stop = StopStrings((tokenizer.decode([71]), tokenizer.decode([74])), tokenizer)
    expected = [one[: 1 + min(one.index(t) for t in (71, 74) if t in one)] for one in texts]
    assert {len(one) for one in expected} < set(range(4, 20))
    assert generated(Autoregressive(), these, replace(asking, stop_strings=stop))[0] == expected
    assert generated(technique(name), these, replace(asking, stop_strings=stop))[0] == expected


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        job(prompts=(torch.tensor([1]), torch.tensor([], dtype=torch.long)))


@pytest.mark.parametrize("name", PEERS)
def test_a_models_own_end_token_ends_no_text_of_the_librarys(name: str) -> None:
    one, these = technique(name), sources("tiny:llama", "itself")
    prepared = one.prepare(these)
    prepared.model.generation_config.eos_token_id = baseline("tiny:llama")[0][7]  # type: ignore[union-attr]
    assert one.generate(prepared, job())[0] == baseline("tiny:llama")


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("name", LOSSLESS)
def test_the_length_asked_for_is_kept(name: str, length: int) -> None:
    outputs, _ = generated(technique(name), sources("tiny:llama", "itself"), job(max_new_tokens=length))
    assert outputs == [one[:length] for one in baseline("tiny:llama")]


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_text_may_fill_the_context_to_its_end(name: str) -> None:
    these = sources("tiny:llama", "itself")
    limit = these.target.config.max_position_embeddings
    long = torch.arange(limit - 6) % 256
    fits = job(prompts=(long,), max_new_tokens=6)
    assert generated(technique(name), these, fits)[0] == generated(Autoregressive(), these, fits)[0]
    if name not in PEERS:
        with pytest.raises(Unsupported, match="do not fit"):
            generated(technique(name), these, job(prompts=(long,), max_new_tokens=7))


# sampling

OPTIONS = {"max_new_tokens": 3, "temperature": 0.9, "top_k": 3, "top_p": 0.95}
PROMPT = torch.tensor([7, 7, 7, 7, 9, 7, 7, 7])


@cache
def law(target: str, prompt: torch.Tensor = PROMPT) -> dict[tuple[int, ...], float]:
    return law_of(target, prompt, OPTIONS)


def drawn(one: Decoding, these: Sources, draws: int, **changes: Any) -> tuple[Counter[tuple[int, ...]], Counter[str]]:
    prepared = one.prepare(these)
    what = DecodingJob(**{"prompts": (PROMPT,) * draws, **OPTIONS, **changes})
    outputs, counts = one.generate(prepared, what)
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return Counter(map(tuple, outputs)), total


@pytest.mark.parametrize("draft", ["near", "itself"])
@pytest.mark.parametrize("name", [name for name in [*LOSSLESS, "autoregressive"] if name not in PEERS])
def test_sampling_keeps_the_targets_law(name: str, draft: str) -> None:
    """Three sampled ids with temperature, top-k and top-p: the law is that of 27 texts at most."""
    these = sources("tiny:llama", draft)
    if draft == "itself" and name in {"prompt_lookup", "early_exit", "autoregressive"}:
        return
    draws = 500
    seen, counts = drawn(technique(name), these, draws)
    expected = law("tiny:llama")
    assert set(seen) <= set(expected), "a text that the target cannot write"
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-5)
    if name != "autoregressive":
        assert counts["accepted"] > draws / 50, "drafts played no part"
        assert draft == "itself" or counts["accepted"] < counts["drafted"], "no residual was drawn from"
    if draft == "itself" and name in {"speculative", "block_verification", "spectr", "tree"}:
        assert counts["accepted"] == counts["drafted"]
    assert z_of(seen, expected, draws) < 3.3  # one false alarm in 2,000, and the seeds are fixed


# batches


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BATCHED)
def test_rows_of_a_batch_go_their_own_ways(name: str, target: str) -> None:
    """Prompts of different lengths, drafts accepted differently, texts that end at different times."""
    stop = frozenset({baseline(target)[0][5]})
    for draft in ("near", "itself"):
        one, these = technique(name), sources(target, draft)
        outputs, counts = generated(one, these, job(batch=3))
        assert outputs == baseline(target)
        assert generated(one, these, job(batch=2))[0] == baseline(target)
        assert generated(one, these, job(batch=3, stop_ids=stop))[0] == baseline(target, stop)
    if name == "speculative":
        assert counts["accepted"] == counts["drafted"]


def test_a_batch_keeps_the_targets_law() -> None:
    draws = 1200
    seen, _ = drawn(technique("speculative"), sources("tiny:llama", "near"), draws, batch=40)
    assert z_of(seen, law("tiny:llama"), draws) < 3.3


@pytest.mark.parametrize("name", ["speculative", "block_verification"])
def test_a_real_model_keeps_its_law_too(name: str) -> None:
    """The embedded model and its draft, in 32 bits: rejections as they come in practice."""
    embedded_draft.ensure()
    these = Sources(Source(embedded.NAME), {"draft": Source(embedded_draft.NAME, "draft")})
    prompt = torch.tensor(these.target.tokenizer("Tell me about the")["input_ids"])
    draws = 480
    seen, counts = drawn(technique(name), these, draws, prompts=(prompt,) * draws, batch=48)
    expected = law(embedded.NAME, prompt)
    assert set(seen) <= set(expected)
    assert len(expected) > 10
    assert 0.1 < counts["accepted"] / counts["tried_1"] < 2 * 0.9, "both outcomes were seen"
    assert z_of(seen, expected, draws) < 3.3


def test_rows_of_a_batch_draw_what_they_draw_alone() -> None:
    these = sources("tiny:llama", "near")
    alone, together = (
        generated(technique("speculative"), these, job(temperature=1.0, batch=batch))[0] for batch in (1, 3)
    )
    assert alone == together


@pytest.mark.parametrize("name", sorted(set(LOSSLESS) - set(BATCHED)))
def test_who_takes_one_prompt_at_a_time_says_so(name: str) -> None:
    with pytest.raises(Unsupported, match="one prompt at a time"):
        generated(technique(name), sources("tiny:llama", "itself"), job(batch=2))


# drafts that do not fit


def test_a_draft_of_another_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    these = Sources(Source("tiny:llama"), {"draft": Source("tiny:qwen3", "draft")})
    vocabulary = {**these.target.tokenizer.get_vocab(), "more": 263}
    monkeypatch.setattr(these.get("draft").tokenizer, "get_vocab", lambda: vocabulary)
    with pytest.raises(Unsupported, match="another vocabulary"):
        technique("speculative").prepare(these)


@pytest.mark.parametrize("name", [name for name in DRAFTED if name != "early_exit"])
def test_without_a_draft_it_says_how_to_name_one(name: str) -> None:
    with pytest.raises(Unsupported, match="--draft"):
        technique(name).prepare(Sources(Source("tiny:llama")))
