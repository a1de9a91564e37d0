"""KIVI holds everything in a few bits: keys per channel, values per token, the latest tokens exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evicted import CONTEXT, IDS, MODELS, NEW
from pydantic import ValidationError

from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families import kv_rounding
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from techniques.kv_cache.core.quantized import PerChannel, PerToken
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.kivi import Kivi
from techniques.kv_cache.kv_int8 import KvInt8

SMALL: dict[str, Any] = {"group": 8, "residual": 16}
TECHNIQUES = [Kivi(**SMALL), Kivi(bits=4, **SMALL), KvInt8()]


def prepared(technique: Any, name: str = "tiny:llama", dtype: str = "float32") -> Any:
    return technique.prepare(Sources(Source(name, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_elements_are_within_half_a_step(technique: Any, name: str, dtype: str) -> None:
    ready = prepared(technique, name, dtype)
    gate = kv_rounding.gate(ready.model, technique.cache(ready, 2, CONTEXT, NEW), IDS, CONTEXT)
    assert gate.passed, gate.detail
    assert "up to 0 of" not in gate.detail


@pytest.mark.parametrize(
    ("technique", "one"),
    [
        # 82 tokens: 80 keys, in groups of 8 tokens, and 16 exact; 64 values, in groups of 8 channels, and 24 exact
        (TECHNIQUES[0], 80 * 16 // 4 + 80 * 16 // 8 * 4 + 16 * 16 * 4 + 64 * 16 // 4 + 64 * 2 * 4 + 24 * 16 * 4),
        (TECHNIQUES[1], 80 * 16 // 2 + 80 * 16 // 8 * 4 + 16 * 16 * 4 + 64 * 16 // 2 + 64 * 2 * 4 + 24 * 16 * 4),
        # values in blocks of 32 tokens
        (TECHNIQUES[2], (82 + 96) * 16 + 2 * 82 * 2),
    ],
)
def test_bytes_are_those_of_the_bits(technique: Any, one: int) -> None:
    ready = prepared(technique)
    for _ in technique.steps(ready, KVCacheJob(contexts=IDS[:, :CONTEXT], max_new_tokens=NEW)):
        assert kv.held_bytes(ready.cache) == 3 * 2 * 2 * one
    full = FullCache()
    base = 3 * 2 * 2 * 82 * 2 * 16 * 4
    assert kv.held_bytes(full_cache := full.cache(prepared(full), 2, CONTEXT, NEW)) == 0
    assert full_cache.layers
    assert 3 * 2 * 2 * one < base / 2


def test_more_bits_are_nearer_to_the_full_cache() -> None:
    full = FullCache()
    expected = full.logprobs(prepared(full), IDS, CONTEXT)
    errors = []
    for technique in TECHNIQUES:
        got = technique.logprobs(prepared(technique), IDS, CONTEXT)
        assert torch.equal(got[:, 0], expected[:, 0])  # the prompt is attended to as it is
        errors.append(float((got - expected)[:, 1:].abs().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[2] < 0.01


def test_a_residual_for_everything_is_the_full_cache() -> None:
    full, exact = FullCache(), Kivi(residual=96)
    got, expected = (made.logprobs(prepared(made), IDS, CONTEXT) for made in (exact, full))
    assert (got - expected).abs().max() < 1e-5


def test_keys_are_rounded_by_channel_and_values_by_token() -> None:
    technique = Kivi()
    assert (technique.bits, technique.group, technique.residual) == (2, 32, 128)
    for layer in technique.cache(prepared(technique), 1, 300, 10).layers:
        keys, values = layer.stores
        assert isinstance(keys, PerChannel)
        assert isinstance(values, PerToken)
        assert (keys.group, keys.keep, keys.block) == (32, 0, 128)
        assert (values.group, values.keep, values.block) == (16, 128, 32)


def test_bad_input_is_one_line() -> None:
    with pytest.raises(ValidationError, match=r"residual=100 is no multiple of group=32"):
        Kivi(residual=100)
    for wrong in ({"bits": 3}, {"group": 0}, {"group": 6}):
        with pytest.raises(ValidationError):
            Kivi(**wrong)
    technique = Kivi(group=12, residual=24)
    with pytest.raises(Unsupported, match=r"heads of 16 channels do not divide into groups of 12"):
        technique.cache(prepared(technique), 1, 100, 10)
