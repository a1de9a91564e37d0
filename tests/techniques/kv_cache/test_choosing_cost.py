"""Choosing costs one product of queries and keys at most, over the rows that a policy uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.families import cache as kv
from bench.models import Source, Sources
from techniques.kv_cache.core.scores import BLOCK, Seen
from techniques.kv_cache.fastgen import FastGen
from techniques.kv_cache.full_cache import FullCache
from techniques.kv_cache.h2o import H2O
from techniques.kv_cache.scissorhands import Scissorhands
from techniques.kv_cache.snapkv import SnapKv
from techniques.kv_cache.tova import Tova

SOURCES = Sources(Source("tiny:llama"))
CONFIG = SOURCES.target.config
TOKENS = 512
ONE = CONFIG.num_hidden_layers * 2 * CONFIG.num_attention_heads * CONFIG.head_dim
"""Operations of one query's product with one key, all heads and layers."""


class Twice(H2O):
    """Scores the prompt a second time."""

    def first_marks(self, seen: Seen) -> Tensor:
        seen.received()
        return super().first_marks(seen)


def products(technique: Any) -> int:
    """Operations of all products while a prompt is read, the attention's own kernel left out."""
    prepared = technique.prepare(SOURCES)
    cache = technique.cache(prepared, 1, TOKENS, 8)
    ids = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        kv.read(prepared.model, ids, cache)
    return counter.get_total_flops()


def scored(rows: int) -> int:
    """Operations that score the last rows of a prompt, block by block, each against the tokens up to its end."""
    starts = range(max(TOKENS - rows, 0), TOKENS, BLOCK)
    return ONE * sum((min(start + BLOCK, TOKENS) - start) * min(start + BLOCK, TOKENS) for start in starts)


@pytest.mark.parametrize(
    ("technique", "rows"),
    [(H2O(), TOKENS), (FastGen(recovery=0.6), TOKENS), (Scissorhands(), 400), (SnapKv(), 32), (Tova(), 1)],
)
def test_choosing_is_one_product_over_the_rows_it_uses(technique: Any, rows: int) -> None:
    extra = products(technique) - products(FullCache())
    assert extra == scored(rows)
    assert 0 < extra <= ONE * TOKENS**2  # one pass of all queries over all keys, masked or not


def test_a_second_pass_is_seen() -> None:
    extra = products(Twice()) - products(FullCache())
    assert extra == 2 * scored(TOKENS)
    assert extra > ONE * TOKENS**2
