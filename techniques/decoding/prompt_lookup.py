"""Prompt lookup: the draft is what followed the last n-gram the last time it stood in the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.families.decoding import Batch, Decoding, DecodingJob, DecodingPrepared, Emitted
from bench.registry import register
from techniques.decoding.core.acceptance import draw, token_wise
from techniques.decoding.core.chain import verify


@register
class PromptLookup(Decoding):
    """Copy the continuation of the latest earlier match of the last n tokens; the target verifies it in one pass.

    Differs from the reference code: the *latest* match is taken, not the first, and a draft that follows an
    n-gram for the full `draft_tokens` goes before a longer n-gram whose match lies too near the end. With
    sampling, the copied tokens are a draft whose distribution is one-hot, verified by modified rejection sampling,
    so the output keeps the target's law.
    """

    source: ClassVar[str] = "Saxena 2023, Prompt Lookup Decoding; Leviathan et al. 2023, algorithm 1 (verification)"
    batched: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"prompt_lookup_short": {"draft_tokens": 3, "ngram": 2}}

    ngram: int = Field(default=3, ge=1, le=16)
    """Longest n-gram that is looked for; shorter ones follow down to 1 [tokens]."""
    draft_tokens: int = Field(default=8, ge=1, le=64)
    """Tokens copied at most [tokens]."""

    @property
    def ahead(self) -> int:
        return self.draft_tokens

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        with job.phase("draft"):
            drafted = [
                look_up(row.known, self.ngram, max(min(self.draft_tokens, row.room - 1), 0)) for row in batch.rows
            ]
        return verify(prepared, batch, job, drafted, None, self.decide)

    def decide(self, p: Tensor, q: Tensor, drafted: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        return draw(token_wise(p, q, drafted), drafted, generator)


def look_up(ids: Tensor, ngram: int, count: int) -> Tensor:
    """What followed the last n-gram at its latest earlier place.

    The longest n-gram with a match wins; among its matches the latest that is followed by `count` tokens, else the
    earliest, which has the longest continuation.

    Args:
        ids: the text so far, `(length,)`.

    Returns:
        Up to `count` ids, `(drafted,)`; none where even the last token is new.
    """
    length = len(ids)
    for size in range(min(ngram, length - 1) if count else 0, 0, -1):
        windows = ids[:-1].unfold(0, size, 1)  # (length - size, size): every n-gram but the last one
        starts = (windows == ids[length - size :]).all(-1).nonzero()[:, 0] + size
        if len(starts):
            full = starts[starts + count <= length]
            start = int(full[-1] if len(full) else starts[0])
            return ids[start : start + count]
    return ids[:0]
