"""Tree speculation: a tree of drafts is read in one pass under a tree attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from bench.families.decoding import Batch, DecodingJob, DecodingPrepared
from bench.registry import register
from techniques.decoding.core.kseq import draw_sequential
from techniques.decoding.core.recursive import without_replacement
from techniques.decoding.core.tree import Drafts, TreeDecoding, grow, likeliest


@register
class Tree(TreeDecoding):
    """Several continuations of every drafted token, so that a round survives where the likeliest one is rejected.

    Children are drawn without replacement and tried in turn by recursive rejection: what a rejected child had is
    taken out of the target's law and out of the draft's. Greedily they are the draft's likeliest tokens. With
    `confidence` the tree grows deep where the draft is sure and stays flat where it is not. That loses nothing of
    the target's law: what is drawn is always tried, and only what follows it is left undrafted.

    Differs from the paper: EAGLE-2 keeps the best nodes of each level and then of the whole tree; here a path is
    continued from a fixed probability on, since a choice among drawn tokens would change the law.
    """

    source: ClassVar[str] = (
        "Miao et al. 2024, SpecInfer, algorithm 2; Jeon et al. 2024, Recursive Speculative Decoding; "
        "Li et al. 2024, EAGLE-2, section 4.1, for `confidence`"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tree_wide": {"branches": (4, 2, 1)},
        "tree_short_head": {"branches": (2, 1), "head_tokens": 2048},
        "tree_confident": {"branches": (3, 1, 1, 1), "confidence": 0.3},
        "tree_confident_short_head": {"branches": (3, 1, 1, 1), "confidence": 0.3, "head_tokens": 2048},
    }

    branches: tuple[int, ...] = Field(default=(2, 2, 1), min_length=1, max_length=16)
    """Children of every node, per level."""

    confidence: float = Field(default=0.0, ge=0, lt=1)
    """A node has children where the draft gives the path to it at least this probability; 0: always."""

    @field_validator("branches")
    @classmethod
    def _small(cls, branches: tuple[int, ...]) -> tuple[int, ...]:
        if min(branches) < 1 or _nodes(branches) > 256:
            raise ValueError("every level needs 1 child or more, and the tree at most 256 nodes")
        return branches

    @property
    def ahead(self) -> int:
        return _nodes(self.branches)

    def grown(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Drafts:
        return grow(prepared, batch, job, self.branches, distinct if job.temperature else likeliest, self.confidence)

    def decide(self, p: Tensor, q: Tensor, candidates: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
        return draw_sequential(without_replacement(p, q, candidates), candidates, generator)


def distinct(law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Children drawn without replacement, fewer where the law has fewer tokens."""
    return torch.multinomial(law, min(count, int((law > 0).sum())), replacement=False, generator=generator)


def _nodes(branches: tuple[int, ...]) -> int:
    nodes, level = 0, 1
    for children in branches:
        level *= children
        nodes += level
    return nodes
