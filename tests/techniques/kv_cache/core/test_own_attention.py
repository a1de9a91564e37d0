"""Models that attend in their own code: another function there computes the same, and caches let go as elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, CodeGenConfig, FalconConfig, GPTJConfig

from bench.byte_tokenizer import byte_tokenizer
from bench.errors import Unsupported
from bench.families import kv_oracle, kv_rounding, own_attention
from bench.families.kv_cache import KVCache, KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.adakv import AdaKv
from techniques.kv_cache.expected_attention import ExpectedAttention
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.h2o import H2O
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.knorm import Knorm
from techniques.kv_cache.kv_int8 import KvInt8
from techniques.kv_cache.snapkv import SnapKv
from techniques.kv_cache.streaming_llm import StreamingLlm
from techniques.kv_cache.tova import Tova

CONTEXT, NEW = 70, 12
IDS = torch.stack(
    [torch.randperm(256, generator=torch.Generator().manual_seed(seed))[: CONTEXT + NEW] for seed in range(2)]
)
JOB = KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW)
SMALL: dict[str, Any] = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 257}
FALCON = FalconConfig(
    **SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256, alibi=False
)
CONFIGS = {
    "gptj": GPTJConfig(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=256, rotary_dim=8),
    "codegen": CodeGenConfig(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=256, rotary_dim=8),
    "falcon": FALCON,
}
POLICIES: list[KVCache] = [
    SnapKv(budget=30, window=6),
    SnapKv(budget=30, window=6, every=3),
    AdaKv(budget=30, window=6),
    H2O(budget=30),
    Tova(budget=30),
    Knorm(budget=30, every=2),
    StreamingLlm(budget=30, positions="absolute"),
    FastGen(recovery=0.6),
]


def saved(config: Any, folder: Path) -> Source:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return Source(str(folder), dtype="float32")


@pytest.fixture(scope="module", params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return saved(CONFIGS[request.param], tmp_path_factory.mktemp(request.param))


def test_it_computes_what_the_models_own_code_does(source: Source) -> None:
    own: Any = source.model()
    assert not own._can_set_attn_implementation(), "else this test says nothing"
    prepared = FullCache().prepare(Sources(source))
    assert own_attention.attends_by(prepared.model) is not None
    made = FullCache().score(prepared, IDS, CONTEXT).logprobs
    with torch.inference_mode():
        logits = own(input_ids=IDS, use_cache=False).logits[:, CONTEXT - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, IDS[:, CONTEXT:, None])[..., 0]
    assert (made - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


@pytest.mark.parametrize("technique", POLICIES, ids=lambda technique: f"{technique!r}"[:24])
def test_the_mask_oracle_passes(source: Source, technique: KVCache) -> None:
    prepared = technique.prepare(Sources(source))
    assert kv_oracle.applies(prepared.model)
    before = own_attention.attends_by(prepared.model)
    gate = kv_oracle.gate(prepared.model, technique.cache(prepared, 2, CONTEXT, NEW), IDS, CONTEXT)
    assert gate.passed, gate.detail
    assert "nothing was evicted" not in gate.detail
    assert own_attention.attends_by(prepared.model) is before


def test_in_16_bits(source: Source) -> None:
    half = Sources(Source(source.name, dtype="bfloat16"))
    full = FullCache().prepare(half)
    assert FullCache().score(full, IDS, CONTEXT).logprobs.isfinite().all()
    technique = SnapKv(budget=30, window=6)
    prepared = technique.prepare(half)
    gate = kv_oracle.gate(prepared.model, technique.cache(prepared, 2, CONTEXT, NEW), IDS, CONTEXT)
    assert gate.passed, gate.detail


def test_a_wrong_cache_does_not_pass(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    technique = Knorm(budget=30)
    prepared = technique.prepare(Sources(source))
    cache: Any = technique.cache(prepared, 2, CONTEXT, NEW)
    said = type(cache.layers[0]).positions
    monkeypatch.setattr(type(cache.layers[0]), "positions", lambda self: (said(self) - 1).clamp(min=0))
    assert not kv_oracle.gate(prepared.model, cache, IDS, CONTEXT).passed


@pytest.mark.parametrize("technique", [Kivi(bits=4, group=8, residual=16), KvInt8()])
def test_rounding_passes(source: Source, technique: KVCache) -> None:
    prepared = technique.prepare(Sources(source))
    gate = kv_rounding.gate(prepared.model, technique.cache(prepared, 2, CONTEXT, NEW), IDS, CONTEXT)
    assert gate.passed, gate.detail


def test_a_budget_for_everything_is_the_full_cache(source: Source) -> None:
    full = FullCache().generate(FullCache().prepare(Sources(source)), JOB)
    technique = SnapKv(ratio=1.0, window=6)
    made = technique.generate(technique.prepare(Sources(source)), JOB)
    assert made.outputs == full.outputs


def test_a_quarter_is_a_quarter(source: Source) -> None:
    ready = [technique.prepare(Sources(source)) for technique in (FullCache(), Knorm(ratio=0.25))]
    whole, part = FullCache().generate(ready[0], JOB), Knorm(ratio=0.25).generate(ready[1], JOB)
    assert part.kept_tokens <= 0.26 * (CONTEXT + NEW)
    # 4 bytes a token and head for its position
    assert part.bytes <= 0.26 * whole.bytes * (1 + 4 / (2 * 16 * 4))


def test_what_has_no_place_for_another_function_is_refused(tmp_path: Path) -> None:
    bloom = saved(BloomConfig(**SMALL, hidden_size=64, n_layer=2, n_head=4), tmp_path / "bloom")
    biased = FalconConfig.from_dict({**FALCON.to_dict(), "alibi": True})
    for one in (bloom, saved(biased, tmp_path / "falcon")):
        with pytest.raises(Unsupported, match=r"needs a model whose attention can be replaced; .* in its own code"):
            SnapKv().prepare(Sources(one))


def test_keys_turned_in_pairs_are_not_turned_back(tmp_path: Path) -> None:
    one = Sources(saved(CONFIGS["gptj"], tmp_path))
    for technique in (StreamingLlm(), ExpectedAttention()):
        with pytest.raises(Unsupported, match="the keys of gptj are turned in pairs of neighbours"):
            technique.prepare(one)
    assert StreamingLlm().prepare(Sources(saved(FALCON, tmp_path / "falcon"))).state is not None
