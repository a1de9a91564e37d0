"""What holds for every technique that evicts: its cache is what it says, of the size it says, and full at 100 %."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, NEW
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from bench import registry
from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families import kv_oracle
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.core.eviction import Eviction, Plan
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.h2o import H2O
from techniques.kv_cache.knorm import Knorm

registry.load_plugins()
POLICIES = [entry.cls for entry in registry.techniques.values() if issubclass(entry.cls, Eviction)]
SMALL: dict[str, Any] = {"window": 6, "recent": 4, "history": 5}
"""What fits the tests' budgets, for the policies that have it."""
JOB = KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW)


def small(policy: type[Eviction], **values: Any) -> Eviction:
    fitting = {name: value for name, value in SMALL.items() if name in policy.model_fields and policy is not H2O}
    return policy(**fitting, **values)


def prepared(technique: Any, name: str = "tiny:llama", dtype: str = "float32") -> Any:
    return technique.prepare(Sources(Source(name, dtype=dtype)))


def test_all_policies_are_here() -> None:
    assert {registry.stem(policy) for policy in POLICIES} == {
        "adakv", "expected_attention", "h2o", "keydiff", "knorm", "pyramidkv", "random_eviction", "scissorhands",
        "snapkv", "tova",
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_mask_oracle(policy: type[Eviction], name: str) -> None:
    for values in [{}, {"every": 1}, {"every": 4}]:
        technique = small(policy, budget=26, **values)
        ready = prepared(technique, name)
        cache = technique.cache(ready, 2, CONTEXT, NEW)
        gate = kv_oracle.gate(ready.model, cache, IDS, CONTEXT)
        assert gate.passed, gate.detail
        assert f"{NEW} steps behind {CONTEXT} tokens in float32" in gate.detail
        assert "nothing was evicted" not in gate.detail


@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision(policy: type[Eviction]) -> None:
    technique = small(policy, budget=22)
    ready = prepared(technique, dtype="bfloat16")
    gate = kv_oracle.gate(ready.model, technique.cache(ready, 2, CONTEXT, NEW), IDS, CONTEXT)
    assert gate.passed, gate.detail


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_for_everything_is_the_full_cache(policy: type[Eviction], name: str) -> None:
    full = FullCache()
    expected = full.logprobs(prepared(full, name), IDS, CONTEXT)
    for size in ({"ratio": 1.0}, {"budget": 1000}):
        technique = small(policy, **size)
        ready = prepared(technique, name)
        assert torch.equal(technique.logprobs(ready, IDS, CONTEXT), expected)
        made = technique.generate(ready, JOB)
        assert made.outputs == full.generate(prepared(full, name), JOB).outputs
        assert made.kept_tokens == CONTEXT + NEW - 1


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_are_those_of_the_budget(policy: type[Eviction]) -> None:
    technique = small(policy, budget=22)
    ready = prepared(technique)
    marks = 4 if technique.watches else 0
    for _ in technique.steps(ready, JOB):
        # 3 layers, 2 rows, 2 heads; keys and values of 16 dimensions in float32, and 4 bytes for the position
        assert kv.held_bytes(ready.cache) == 3 * 2 * 2 * 22 * (2 * 16 * 4 + 4 + marks)
        assert kv.kept_tokens(ready.cache) <= 22
        for layer in ready.cache.layers:
            assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in layer.held())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_that_goes_on_never_holds_more(policy: type[Eviction]) -> None:
    technique = small(policy, budget=24, every=3)
    ready = prepared(technique)
    cache = technique.cache(ready, 2, CONTEXT, NEW)
    with torch.inference_mode():
        kv.read(ready.model, IDS[:, :CONTEXT], cache)
    counts = [kv.kept_tokens(cache)]
    for at in range(CONTEXT, CONTEXT + NEW):
        with torch.inference_mode():
            kv.read(ready.model, IDS[:, at : at + 1], cache)
        counts.append(kv.kept_tokens(cache))
        assert cache.get_seq_length() == at + 1
    assert counts == [21, *[22, 23, 21] * 4]


def test_a_short_context_is_kept_until_the_cache_is_full() -> None:
    technique = Knorm(budget=76, every=2)
    ready = prepared(technique)
    cache = technique.cache(ready, 2, CONTEXT, NEW)
    counts = []
    with torch.inference_mode():
        for start, stop in [(0, CONTEXT), *((at, at + 1) for at in range(CONTEXT, CONTEXT + NEW))]:
            kv.read(ready.model, IDS[:, start:stop], cache)
            counts.append(kv.kept_tokens(cache))
    assert counts == [70, 71, 72, 73, 74, 75, 74, 75, 74, 75, 74, 75, 74]


def test_plans() -> None:
    assert Knorm(ratio=0.25).plans(1024, 32, 2) == [Plan(232, 32, False)] * 2
    assert Knorm(ratio=0.25, every=8).plans(1024, 32, 1) == [Plan(256, 8, True)]
    assert Knorm(ratio=1.0, every=8).plans(1024, 32, 1) == [Plan(1024, 32, False)]
    assert Knorm(budget=1040, every=8).plans(1024, 32, 1) == [Plan(1024, 16, True)]


def test_the_prompt_is_attended_to_in_full() -> None:
    full = FullCache()
    expected = full.logprobs(prepared(full), IDS, CONTEXT)
    got = (technique := Knorm(budget=20)).logprobs(prepared(technique), IDS, CONTEXT)
    assert torch.equal(got[:, 0], expected[:, 0])
    assert not torch.equal(got[:, 1], expected[:, 1])


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_of_a_batch_are_independent(policy: type[Eviction]) -> None:
    technique = small(policy, budget=22)
    ready = prepared(technique)
    both = technique.logprobs(ready, IDS, CONTEXT)
    apart = [technique.logprobs(ready, row[None], CONTEXT) for row in IDS]
    assert (both - torch.cat(apart)).abs().max() < 1e-4


def test_bad_sizes_are_one_line() -> None:
    for wrong in ({"ratio": 0.0}, {"ratio": 1.5}, {"budget": 0}, {"every": 0}):
        with pytest.raises(ValidationError):
            Knorm(**wrong)
    with pytest.raises(ValidationError, match=r"give one of ratio, budget; here ratio=0.5, budget=9"):
        Knorm(ratio=0.5, budget=9)
    with pytest.raises(
        Unsupported,
        match=r"^a budget of 10 of 100 tokens leaves 0 beside 20 to come, and knorm needs 1: give a ratio of 0.21 or "
        r"a budget of 21 at least, or every=1 to go on evicting$",
    ):
        Knorm(ratio=0.1).plans(80, 20, 3)
    with pytest.raises(Unsupported, match=r"leaves 0 beside 30 to come, .* at least$"):
        Knorm(budget=20, every=30).plans(80, 40, 3)


def test_parameters_survive_json() -> None:
    for technique in (Knorm(), Knorm(budget=8), Knorm(ratio=0.5, every=2)):
        assert Knorm.model_validate_json(technique.model_dump_json()) == technique


def source(kind: str, **values: Any) -> Any:
    """A source of a random network of any kind."""
    config = AutoConfig.for_model(
        kind, hidden_size=64, num_hidden_layers=2, vocab_size=264, intermediate_size=64, pad_token_id=0, **values
    )
    return SimpleNamespace(
        target=SimpleNamespace(config=config, model=lambda: AutoModelForCausalLM.from_config(config).eval())
    )


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("mamba", {"state_size": 4}, "no key/value cache"),
        ("bloom", {"n_head": 4}, "in its own code"),
        ("mistral", {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16}, "sliding window"),
    ],
)
def test_models_that_cannot_be_evicted_are_unsupported(kind: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        Knorm().prepare(source(kind, **values))


def test_capped_logits_are_unsupported() -> None:
    given = source("gemma2", num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    given.target.config.layer_types = ["full_attention"] * 2
    with pytest.raises(Unsupported, match=r"capped logits|attends by 'eager'"):
        Knorm().prepare(given)
