"""TOVA: whenever the cache is full, the token with the least attention from the latest one goes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from bench.families.kv_cache import QUERY_AWARE
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class Tova(Eviction):
    """Keep the tokens that the latest query attends to most, by the mean over all heads of a layer.

    All heads of a layer keep the same tokens. Goes on while decoding: each new token, behind its attention, puts one
    out, which may be itself. Query-aware: the last token of the prompt decides what is kept of it.

    Differs from the paper:
        The prompt attends to itself in full and is compressed at once, by its last query. With grouped queries the
        mean is over query heads. kvpress keeps the last token in any case; here, as in the paper, its own weight
        decides.
    """

    source: ClassVar[str] = "Oren et al. 2024, Transformers are Multi-State RNNs (Token Omission Via Attention)"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AWARE,)

    every: int | None = Field(default=1, ge=1)
    """New tokens between two evictions while decoding, the paper's is 1; none: the prompt is compressed, and all that
    follows stays [tokens]."""

    watches: ClassVar[bool] = True

    def first_marks(self, seen: Seen) -> Tensor:
        return seen.received(last=1).mean(2)

    def mark(self, marks: Tensor, weights: Tensor, left: int) -> None:
        if left == 0:
            marks.copy_(weights.mean(-2))

    def importance(self, seen: Seen) -> Tensor:
        assert seen.marks is not None
        return seen.marks.mean(1, keepdim=True).expand_as(seen.marks)
