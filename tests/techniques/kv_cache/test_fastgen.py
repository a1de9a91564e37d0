"""FastGen gives each head the cheapest policy that recovers its attention, frees the rest, and keeps to it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from evicted import CONTEXT, MODELS, NEW, Run, best, run
from evicted import IDS as PLAIN
from pydantic import ValidationError
from torch import Tensor
from transformers import AddedToken

from bench.byte_tokenizer import byte_tokenizer
from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families import kv_oracle
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.core.profile import affordable, kinds_of_ids
from techniques.kv_cache.core.ragged import RaggedLayer
from techniques.kv_cache.core.scores import Seen
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache

IDS = PLAIN.clone()
IDS[:, 0] = 256
IDS[0, 33] = IDS[1, 50] = IDS[0, CONTEXT + 4] = 257
KINDS = kinds_of_ids(Source("tiny:llama").tokenizer, 264)[IDS]  # (2, CONTEXT + NEW)


def prepared(technique: Any, name: str = "tiny:llama", dtype: str = "float32") -> Any:
    return technique.prepare(Sources(Source(name, dtype=dtype)))


def covered(technique: FastGen, row: int, parts: tuple[str, ...], heavy: list[float], tokens: int) -> set[int]:
    """The tokens of the text that these parts keep, behind so many; `heavy` is minus infinity where none is held."""
    made: set[int] = set()
    for part in parts:
        if part == "special":
            made |= {at for at in range(tokens) if KINDS[row, at] == 1}
        elif part == "punctuation":
            made |= {at for at in range(tokens) if KINDS[row, at] == 2}
        elif part == "frequent":
            made |= best(torch.tensor(heavy), round(technique.frequent * tokens))
        else:
            made |= set(range(tokens - round(technique.local * tokens), tokens))
    return made


def recovery(technique: FastGen, attended: Tensor, row: int, parts: tuple[str, ...], heavy: list[float]) -> Tensor:
    """1 minus half the L1 norm of what changes when the other tokens go: `(group,)`, the mean over queries."""
    fixed = covered(technique, row, tuple(part for part in parts if part != "local"), heavy, CONTEXT)
    window = round(technique.local * CONTEXT) if "local" in parts else 0
    made = torch.zeros(len(attended), CONTEXT, dtype=torch.float64)
    for at in range(CONTEXT):
        kept = torch.zeros(CONTEXT, dtype=torch.float64)
        kept[[other for other in range(at + 1) if other in fixed or other > at - window]] = 1
        left = attended[:, at] * kept
        whole = left.sum(-1, keepdim=True)
        changed = (attended[:, at] - left / whole.clamp(min=1e-300)).abs().sum(-1) / 2
        made[:, at] = torch.where(whole[:, 0] > 0, 1 - changed, 0.0)
    return made.mean(-1)


def policy(technique: FastGen, made: Run, layer: int, row: int, head: int) -> tuple[int, list[float]]:
    """The first policy of the chain that recovers enough, and the attention that each token received."""
    attended = made.map(layer, row, head)
    heavy: list[float] = attended.mean(0).sum(0).tolist()
    for count in range(1, len(technique.order) + 1):
        recovered = recovery(technique, attended, row, technique.order[:count], heavy)
        if technique.recovery < 1 and float(getattr(recovered, technique.group)()) >= technique.recovery:
            return count, heavy
    return len(technique.order) + 1, heavy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "values",
    [
        {"recovery": 0.77, "every": 1},
        {"recovery": 0.77, "every": 3},
        {"recovery": 0.93, "group": "min", "every": 1},
        {
            "recovery": 0.5,
            "every": 2,
            "frequent": 0.1,
            "local": 0.2,
            "order": ("local", "special", "frequent", "punctuation"),
        },
    ],
)
def test_policies_are_the_papers_and_decoding_keeps_them(name: str, values: dict[str, Any]) -> None:
    technique = FastGen(**values)
    made = run(technique, name, ids=IDS)
    found = set()
    for layer, row, head in made.each():
        count, heavy = policy(technique, made, layer, row, head)
        found.add(count)
        assert int(made.cache.layers[layer].policies[row, head]) == count, (layer, row, head)
        expected = set(range(CONTEXT))
        for time, held in enumerate(made.held):
            tokens = CONTEXT + time
            if time:
                expected = expected | {tokens - 1}
                seen = sorted(expected)
                heavy.append(0.0)
                weights = made.weights(layer, row, head, tokens - 1, seen).mean(0)
                for at, weight in zip(seen, weights.tolist(), strict=True):
                    heavy[at] += weight
            if count <= len(technique.order) and time % values["every"] == 0:
                there = [heavy[at] if at in expected else -torch.inf for at in range(tokens)]
                expected &= covered(technique, row, technique.order[:count], there, tokens)
            assert held[layer][row][head] == expected, (layer, row, head, time)
    if "order" not in values and name != "tiny:qwen3":  # one key/value head a layer
        assert len(found) > 1, "heads do not differ: the test says little"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["fastgen", *FastGen.presets])
def test_mask_oracle(name: str, preset: str) -> None:
    for share in (0.0, 0.6, 0.9):
        technique = FastGen(**{"recovery": share, "every": 2, **FastGen.presets.get(preset, {})})
        ready = prepared(technique, name)
        gate = kv_oracle.gate(ready.model, technique.cache(ready, 2, CONTEXT, NEW), IDS, CONTEXT)
        assert gate.passed, gate.detail
        assert share or "nothing was evicted" not in gate.detail


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_all_of_the_attention_is_the_full_cache(name: str, dtype: str) -> None:
    full, technique = FullCache(), FastGen(recovery=1.0)
    ready = prepared(technique, name, dtype)
    expected = full.logprobs(prepared(full, name, dtype), IDS, CONTEXT)
    assert torch.equal(technique.logprobs(ready, IDS, CONTEXT), expected)
    made = technique.generate(ready, KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW))
    assert made.kept_tokens == CONTEXT + NEW - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_none_of_the_attention_is_special_tokens_only(dtype: str) -> None:
    technique = FastGen(recovery=0.0, every=1)
    ready = prepared(technique, dtype=dtype)
    cache = technique.cache(ready, 2, CONTEXT, NEW)
    with torch.inference_mode():
        for start, stop in [(0, CONTEXT), *((at, at + 1) for at in range(CONTEXT, CONTEXT + NEW))]:
            kv.read(ready.model, IDS[:, start:stop], cache)
            for layer in cache.layers:
                for row in range(2):
                    special = [at for at in range(stop) if KINDS[row, at] == 1]
                    assert all(
                        sorted(at for at in head if at >= 0) == special for head in layer.positions()[row].tolist()
                    )


def states(tokens: int = 40) -> tuple[Seen, Tensor]:
    """A layer of two heads with two queries each, and the kinds of its tokens."""
    torch.manual_seed(3)
    query, keys = torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8)
    kinds = torch.zeros(1, 2, tokens, dtype=torch.int8)
    kinds[..., 0], kinds[..., 5:9] = 1, 2
    return Seen(0, tokens, tokens, query, keys, keys, torch.arange(tokens).expand(1, 2, -1), 1.0), kinds


def test_more_recovery_never_keeps_less() -> None:
    seen, kinds = states()
    before = torch.zeros(1, 2, 40, dtype=torch.bool)
    policies = []
    for share in [0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]:
        count, kept, _ = FastGen(recovery=share).profile(seen, kinds)
        assert not bool((before & ~kept).any()), share
        before = kept
        policies.append(int(count[0, 0]))
    assert policies == sorted(policies)
    assert set(policies) == {1, 2, 3, 4, 5}
    assert bool(before.all())


def test_weight_too_small_to_count_is_not_dropped_where_all_is_asked_for() -> None:
    tokens = 32
    keys = 6.0 * torch.eye(tokens)[None, None]  # each looks at itself: what others get vanishes beside 1
    seen = Seen(0, tokens, tokens, keys, keys, keys, torch.arange(tokens)[None, None], 1.0)
    kinds = torch.zeros(1, 1, tokens, dtype=torch.int8)
    for share, kept in [(0.999999, 10), (1.0, 32)]:
        _, stays, _ = FastGen(recovery=share, order=("local",)).profile(seen, kinds)
        assert int(stays.sum()) == kept


def test_sets_grow_along_the_chain() -> None:
    seen, kinds = states()
    marks = torch.rand(1, 2, 40)
    unions = FastGen().unions(kinds, marks, seen.positions, 40)
    assert len(unions) == 5
    assert all(not bool((one & ~other).any()) for one, other in itertools.pairwise(unions))
    assert [int(union[0, 0].sum()) for union in unions[:2]] == [1, 5]


def test_a_head_that_looks_at_special_tokens_keeps_them_only() -> None:
    seen, kinds = states()
    keys = seen.keys.clone()
    query = seen.query.abs()
    keys[0, 0] = -1.0
    keys[0, 0, 0] = 100.0  # the first head looks at token 0, the other at random
    policies, kept, _ = FastGen(recovery=0.98).profile(Seen(**{**vars(seen), "query": query, "keys": keys}), kinds)
    assert policies[0, 0] == 1
    assert policies[0, 1] > 2
    assert kept[0, 0].nonzero().flatten().tolist() == [0]


def test_a_group_agrees_by_its_mean_or_its_least() -> None:
    seen, kinds = states()
    keys, query = seen.keys.clone(), seen.query.abs()
    keys[0, 0] = -1.0
    keys[0, 0, 0] = 100.0
    query[0, 1] *= 0.0  # the second query of the first head attends alike to everything
    given = Seen(**{**vars(seen), "query": query, "keys": keys})
    assert FastGen(recovery=0.5).profile(given, kinds)[0][0, 0] == 1
    assert FastGen(recovery=0.5, group="min").profile(given, kinds)[0][0, 0] > 1


def test_storage_is_what_is_kept_and_a_block() -> None:
    technique = FastGen(recovery=0.7)
    made = run(technique, ids=IDS, new=0)
    for layer in made.cache.layers:
        counts = (layer.positions() >= 0).sum(-1)
        full = layer.policies > 4
        room = torch.where(full, NEW, min(16, NEW))
        slots = int((counts + room).sum())
        # keys and values of 16 dimensions in float32, position, kind and mark
        assert sum(t.untyped_storage().nbytes() for t in layer.held()) == slots * (2 * 16 * 4 + 4 + 1 + 4)


def test_many_new_tokens_are_laid_out_anew() -> None:
    technique = FastGen(recovery=0.6, local=0.9)
    ready = prepared(technique)
    ids = torch.cat([IDS[:, :CONTEXT], torch.randint(0, 256, (2, 50))], 1)
    cache = technique.cache(ready, 2, CONTEXT, 50)
    gate = kv_oracle.gate(ready.model, cache, ids, CONTEXT)
    assert gate.passed, gate.detail
    for layer in cache.layers:
        slack = layer.capacities - (layer.positions() >= 0).sum(-1)
        assert layer.every == 16
        assert int(slack.max()) <= layer.every
        assert int(layer.capacities.sum()) == len(layer.keys)


def test_evicting_behind_every_token_does_not_copy_the_layer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    grown: list[int] = []
    real = RaggedLayer.regrow
    monkeypatch.setattr(RaggedLayer, "regrow", lambda layer, rooms: grown.append(layer.seen) or real(layer, rooms))
    technique = FastGen(recovery=0.9, local=0.3, frequent=0.9, every=1)
    ready = prepared(technique)
    ids = torch.cat([IDS[:, :CONTEXT], torch.randint(0, 256, (2, 64))], 1)
    cache = technique.cache(ready, 2, CONTEXT, 64)
    gate = kv_oracle.gate(ready.model, cache, ids, CONTEXT)
    assert gate.passed, gate.detail
    assert all(layer.every == 1 for layer in cache.layers)
    # 64 tokens come to each layer; a head grows by one of them at most
    assert 0 < len(grown) <= 64 // 16 * len(cache.layers)


def test_long_prompts_are_evicted_from_less_often() -> None:
    for given, tokens, every in ((None, 1000, 31), (5, 1000, 5), (None, 200, 16)):
        technique = FastGen(recovery=0.6, every=given)
        ready = technique.prepare(Sources(Source("tiny:llama")))
        cache = technique.cache(ready, 1, tokens, 4)
        with torch.inference_mode():
            kv.read(ready.model, torch.randint(0, 256, (1, tokens)), cache)
        assert [layer.every for layer in cache.layers] == [every] * len(cache.layers)


def test_kinds_of_tokens() -> None:
    tokenizer = Source("tiny:llama").tokenizer
    kinds = kinds_of_ids(tokenizer, 264)
    assert kinds.shape == (264,)
    for text, kind in {".": 2, ",": 2, "?": 2, "a": 0, "7": 0, " ": 0, "+": 0, "<eos>": 1}.items():
        (token,) = tokenizer(text)["input_ids"]
        assert kinds[token] == kind, text
    assert kinds[256:].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_markers_of_a_chat_are_special() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("word", special=False)])
    marker, word = (tokenizer.convert_tokens_to_ids(text) for text in ("<|turn|>", "word"))
    assert marker not in tokenizer.all_special_ids
    kinds = kinds_of_ids(tokenizer, len(tokenizer))
    assert (kinds[marker], kinds[word]) == (1, 0)


@pytest.mark.parametrize(
    ("shape", "gigabytes"), [("llama-7b", 4.3), ("llama-13b", 6.7), ("llama-33b", 13.1), ("llama-65b", 21.5)]
)
def test_the_papers_full_caches(shape: str, gigabytes: float) -> None:
    """Table 1: batch 16, 512 tokens, half precision."""
    config = Source(f"synthetic:{shape}").config
    cache = kv.preallocated(config, 512)
    state = torch.empty(16, config.num_key_value_heads, 1, 128, dtype=torch.float16, device="meta")
    for layer in cache.layers:
        layer.lazy_initialization(state, state)
    held = sum(t.numel() * t.element_size() for t in kv.tensors(cache))
    assert round(held / 1e9, 1) == gigabytes


def test_bad_input_is_one_line() -> None:
    with pytest.raises(ValidationError, match=r"order=special, special names a part twice"):
        FastGen(order=("special", "special"))
    with pytest.raises(ValidationError, match="first=3 of a chain of 1; give at most as many"):
        FastGen(order=("special",), first=3)
    for wrong in ({"recovery": 1.1}, {"order": ()}, {"order": ("sinks",)}, {"frequent": 0.0}, {"local": 1.5}):
        with pytest.raises(ValidationError):
            FastGen(**wrong)
    assert FastGen.model_validate_json(FastGen(recovery=0.5).model_dump_json()) == FastGen(recovery=0.5)


@pytest.mark.parametrize("size", [{"ratio": 0.35}, {"ratio": 0.75}, {"budget": 105}])
def test_a_budget_is_the_highest_recovery_that_fits(size: dict[str, Any]) -> None:
    technique = FastGen(**size, frequent=0.1, local=0.1)
    ready = prepared(technique)
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 256, (2, 300), generator=draw)
    cache = technique.cache(ready, 2, 260, 40)
    with torch.inference_mode():
        kv.read(ready.model, ids[:, :260], cache)
        for at in range(260, 300):
            kv.read(ready.model, ids[:, at : at + 1], cache)
    for layer in cache.layers:
        assert int(layer.capacities.sum(1).max()) <= technique.size(300) * layer.capacities.shape[1]
        assert len(set(layer.policies.flatten().tolist())) > 1, "heads differ"


def test_the_highest_recovery_of_a_row_by_hand() -> None:
    recovered = torch.tensor([[[0.1, 0.5, 0.8], [0.3, 0.6, 0.9]]])
    slots = torch.tensor([[[2, 5, 20, 100], [3, 6, 30, 100]]])
    expected = {200: (4, 4), 199: (4, 3), 130: (4, 3), 129: (3, 3), 50: (3, 3), 49: (3, 2), 26: (3, 2), 25: (2, 2)}
    expected |= {11: (2, 2), 10: (2, 1), 8: (2, 1), 7: (1, 1), 5: (1, 1)}
    for room, policies in expected.items():
        assert tuple(affordable(recovered, slots, room)[0].tolist()) == policies, room
    with pytest.raises(Unsupported, match="3 tokens a head are the fewest that a layer's heads could keep, 2 fit"):
        affordable(recovered, slots, 4)
    both = affordable(torch.cat([recovered, recovered.flip(1)]), torch.cat([slots, slots.flip(1)]), 10)
    assert both.tolist() == [[2, 1], [1, 2]], "a row's recovery is its own"


def test_one_size_is_given() -> None:
    assert FastGen().recovery == 0.95
    assert FastGen(ratio=0.25).recovery is None
    assert FastGen(budget=64).ratio is None
    with pytest.raises(ValidationError, match="give one of recovery, ratio, budget"):
        FastGen(recovery=0.9, ratio=0.25)


def test_sinks_count_as_special_also_while_decoding() -> None:
    technique = FastGen(recovery=0.0, sinks=3, every=2)
    made = run(technique, ids=IDS)
    for layer in made.cache.layers:
        for row in range(2):
            special = {at for at in range(CONTEXT + NEW - 2) if KINDS[row, at] == 1} | {0, 1, 2}
            for head in layer.positions()[row].tolist():
                assert special <= set(head)
                assert {at for at in head if 0 <= at < CONTEXT} == {at for at in special if at < CONTEXT}


def test_every_head_keeps_the_first_parts() -> None:
    seen, kinds = states()
    policies, kept, marks = FastGen(recovery=0.0, order=("frequent", "local"), first=2).profile(seen, kinds)
    assert bool((policies == 2).all())
    for head in range(2):
        assert {*kept[0, head].nonzero()[:, 0].tolist()} == best(marks[0, head], 12) | set(range(28, 40))
    assert bool((FastGen(recovery=0.0, order=("frequent", "local")).profile(seen, kinds)[0] == 1).all())
    policies, _, _ = FastGen(ratio=0.9, first=3).profile(seen, kinds)
    assert int(policies.min()) >= 3
