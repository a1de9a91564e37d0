"""H2O: half of the budget for heavy hitters, half for the latest tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.claim import Claim, at_least, at_most
from bench.families.kv_cache import QUERY_AWARE
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class H2O(Eviction):
    """Keep the tokens with the largest attention accumulated over all queries so far, and the latest ones.

    Each head keeps its own. The sums of the prompt's queries are computed in blocks of rows; while decoding each new
    token adds its weights to the sums (4 bytes per token and head). Query-aware: all of the prompt's queries count.

    Differs from the paper:
        With grouped queries a head's sum runs over the queries of its group. While decoding, a query adds the
        weights that it gives to the tokens still held, as in the paper's algorithm. kvpress divides a token's sum by
        the number of queries that saw it; neither the paper nor this does.
    """

    source: ClassVar[str] = "Zhang et al. 2023, H2O: Heavy-Hitter Oracle, algorithm 1"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AWARE,)
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="fifth_is_enough",
            statement="With a fifth of the cache quality is that of the full one.",
            source="Zhang et al. 2023, H2O, the authors' code (20 % heavy hitters)",
            expression="nll(h2o[ratio=0.2]) - nll(full_cache)",
            expected=at_most(0.01),
            conditions={"model": "*opt-*|*llama-*|*gpt-neox-*", "device": "cuda"},
            workload={"name": "long_document", "context": 1024},
        ),
        Claim(
            name="speed",
            statement="Latency falls by up to 1.9 times with a fifth of the cache.",
            source="Zhang et al. 2023, H2O, the authors' code page",
            expression="tpot(full_cache) / tpot(h2o[ratio=0.2])",
            expected=at_least(1.8),
            conditions={"model": "*opt-*", "device": "cuda"},
            out_of_reach="the page does not say with which batch and length",
            workload={"name": "long_document", "context": 1024},
        ),
    )
    watches: ClassVar[bool] = True

    recent: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the kept tokens that are the latest ones; the rest are heavy hitters."""
    every: int | None = Field(default=1, ge=1)
    """New tokens between two evictions while decoding, the paper's is 1; none: the prompt is compressed, and all that
    follows stays [tokens]."""

    def first_marks(self, seen: Seen) -> Tensor:
        return seen.received().sum(2)

    def mark(self, marks: Tensor, weights: Tensor, left: int) -> None:
        marks += weights.sum(-2)

    def importance(self, seen: Seen) -> Tensor:
        assert seen.marks is not None
        return seen.marks.masked_fill(seen.recent(int(self.recent * seen.kept)), torch.inf)
