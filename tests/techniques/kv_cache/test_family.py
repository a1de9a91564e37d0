"""What all caches have in common: a label that says what they look at, and one line for models they cannot serve."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, NEW
from transformers import AutoConfig, AutoModelForCausalLM

from bench import registry
from bench.errors import Unsupported
from bench.families import attention
from bench.families import cache as kv
from bench.families.kv_cache import QUERY_AGNOSTIC, QUERY_AWARE, KVCacheJob
from bench.models import Source, Sources
from bench.probes.clock import PhaseClock
from bench.technique import unmarked

registry.load_plugins()
ALL = [entry for entry in registry.techniques.values() if entry.cls.family == "kv_cache" and not entry.is_preset]
KEEPING = {"full_cache", "hf_dynamic"}
SHRINKING = [entry for entry in ALL if entry.name not in KEEPING and entry.cls.__module__.startswith("techniques")]
SMALL: dict[str, Any] = {"window": 6, "recent": 4, "history": 5, "ratio": 0.5}
# a random network attends so evenly that h2o's sums follow age; fastgen's heads may keep everything for either end, and
# the others weigh keys against each other, those of the end among them
CHANGED = {"adakv": True, "pyramidkv": True, "scissorhands": True, "snapkv": True, "tova": True}
CHANGED |= {"streaming_llm": False, "random_eviction": False, "kivi": False, "kv_int8": False}
"""Whether what is kept of a context depends on its end."""
ASKED = {"adakv", "fastgen", "h2o", "pyramidkv", "scissorhands", "snapkv", "tova"}


def small(entry: Any) -> Any:
    fitting = {k: v for k, v in SMALL.items() if k in entry.cls.model_fields}
    if entry.name in {"h2o", "streaming_llm"}:
        fitting = {"ratio": 0.5}
    return entry.cls(**fitting)


@pytest.mark.parametrize("entry", SHRINKING, ids=lambda entry: entry.name)
def test_every_cache_that_shrinks_says_what_it_looks_at(entry: Any) -> None:
    wanted = QUERY_AWARE if entry.name in ASKED else QUERY_AGNOSTIC
    assert entry.cls.labels == (wanted,)
    assert wanted.capitalize() in inspect.cleandoc(entry.cls.__doc__), "the docstring says something else"


@pytest.mark.parametrize("name", CHANGED)
def test_the_label_is_true(name: str) -> None:
    """Other last tokens of a context change what a query-aware cache keeps of earlier ones."""
    technique = small(registry.techniques[name])
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    held = []
    for end in (IDS[:1, CONTEXT - 30 : CONTEXT], IDS[1:, CONTEXT - 30 : CONTEXT]):
        cache = technique.cache(prepared, 1, CONTEXT, NEW)
        with torch.inference_mode():
            kv.read(prepared.model, torch.cat([IDS[:1, : CONTEXT - 30], end], 1), cache)
        # states of earlier tokens do not depend on what follows, in any layer: only the choice does
        held.append([set(head) for layer in cache.layers for head in layer.positions()[0].tolist()])
    changed = any((a ^ b) & set(range(CONTEXT - 30)) for a, b in zip(*held, strict=True))
    assert changed == CHANGED[name] == (QUERY_AWARE in technique.labels)


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (
            "mistral",
            {"sliding_window": 16},
            "2 of 2 layers of mistral attend to a sliding window already, of 16 tokens, and hold no more than that; "
            "give a model whose layers all attend to the whole text",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            "1 of 2 layers of qwen2 attend to a sliding window already, of 16 tokens, and hold no more than that; "
            "give a model whose layers all attend to the whole text",
        ),
        (
            "gemma3_text",
            {"sliding_window": 16, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
            "1 of 2 layers of gemma3_text attend to a sliding window already, of 16 tokens, and hold no more than "
            "that; give a model whose layers all attend to the whole text",
        ),
    ],
)
@pytest.mark.parametrize("entry", SHRINKING, ids=lambda entry: entry.name)
def test_sliding_windows_are_refused_in_one_line(entry: Any, kind: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported) as refused:
        start(small(entry), tiny(kind, **values))
    assert str(refused.value) == reason


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_models_without_a_cache_of_keys_and_values_are_refused(entry: Any) -> None:
    config = AutoConfig.for_model("mamba", hidden_size=64, num_hidden_layers=2, vocab_size=264, state_size=4)
    with pytest.raises(Unsupported) as refused:
        start(small(entry), config)
    assert "\n" not in str(refused.value)
    assert "key/value cache" in str(refused.value)


@pytest.mark.parametrize("name", sorted(KEEPING))
def test_caches_that_let_nothing_go_serve_sliding_windows(name: str) -> None:
    technique = registry.techniques[name].cls()
    prepared = start(technique, tiny("mistral", sliding_window=16))
    made = technique.generate(prepared, KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=4))
    with torch.inference_mode():
        full = prepared.model(input_ids=torch.cat([IDS[:, :CONTEXT], torch.tensor(made.outputs)], 1)).logits
    assert full[:, CONTEXT - 1 : -1].argmax(-1).tolist() == made.outputs


def tiny(kind: str, **values: Any) -> Any:
    """The configuration of a small model of any kind, two layers of grouped queries."""
    return AutoConfig.for_model(
        kind, hidden_size=64, num_hidden_layers=2, vocab_size=264, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, **values,
    )  # fmt: skip


def start(technique: Any, config: Any) -> Any:
    """Prepare a technique on a random network, up to its cache."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = Source("tiny:llama").tokenizer
    sources: Any = SimpleNamespace(target=SimpleNamespace(config=config, model=lambda: model, tokenizer=tokenizer))
    prepared = technique.prepare(sources)
    technique.cache(prepared, 2, CONTEXT, NEW)
    return prepared


@pytest.mark.parametrize("name", ["snapkv", "h2o", "fastgen"])
def test_what_choosing_takes_is_a_phase_of_its_own(name: str) -> None:
    technique = small(registry.techniques[name])
    if name == "fastgen":
        technique = type(technique)(recovery=0.7, every=1)
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    clock = PhaseClock("cpu")
    steps = technique.steps(prepared, KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=5, phase=clock))
    for _ in steps:
        pass
    assert len(clock.seconds["choose"]) == 3  # one per layer
    assert len(clock.seconds["prefill"]) == 1
    # snapkv lets go behind the prompt only; the others behind every token, in each of 3 layers
    assert len(clock.seconds.get("evict", [])) == (0 if name == "snapkv" else 3 * 4)


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_attention_is_a_phase_of_its_own_when_decoding(entry: Any) -> None:
    technique = small(entry)
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    clock = PhaseClock("cpu")
    for _ in technique.steps(prepared, KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=5, phase=clock)):
        assert attention._marks == [unmarked], "the mark of a pass does not outlive it"
    # one per layer and decoding step, none of the prefill; the library's own attention is not ours to mark
    assert len(clock.seconds.get("attention", [])) == (0 if entry.name == "hf_dynamic" else 3 * 4)
    assert len(clock.seconds["forward"]) == 4


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_a_burst_behind_a_kept_reading_is_a_whole_one(entry: Any) -> None:
    """To the last bit of every logit, however often the reading has been gone on from."""
    technique = small(entry)
    whole = KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW)
    prepared = technique.prepare(Sources(Source("tiny:llama")))
    seen: list[torch.Tensor] = []
    prepared.model.register_forward_hook(lambda module, given, out: seen.append(out.logits))

    def burst(job: KVCacheJob) -> tuple[list[str], list[torch.Tensor], list[list[torch.Tensor]]]:
        seen.clear()
        kinds, places = [], []
        for step in technique.steps(prepared, job):
            kinds.append(step.kind)
            evicting = [one for one in prepared.cache.layers if isinstance(one, kv.EvictingLayer)]
            places.append([layer.positions() for layer in evicting])
        return kinds, seen[-(NEW - 1) :], places[-(NEW - 1) :]

    kinds, logits, places = burst(whole)
    assert kinds == ["prefill"] + ["decode"] * (NEW - 1)
    assert prepared.reading is None
    once = replace(whole, read_once=True)
    for first in (["prefill"], [], []):
        again = burst(once)
        assert again[0] == [*first, "resume"] + ["decode"] * (NEW - 1)
        torch.testing.assert_close(again[1:], (logits, places), rtol=0, atol=0)
    assert burst(replace(once, contexts=IDS[:, 1 : CONTEXT + 1]))[0][0] == "prefill", "of another context"
    assert burst(replace(once, phase=PhaseClock("cpu")))[0] == kinds, "phases are those of a whole burst"
    assert prepared.reading is None, "and so is the peak of memory"
