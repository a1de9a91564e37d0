"""SnapKV: the last queries of the prompt show what the answer will look at."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import pad

from bench.claim import Claim, at_least, at_most
from bench.errors import Unsupported
from bench.families.kv_cache import QUERY_AWARE
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction, Plan
from techniques.kv_cache.core.scores import Seen, pooled


@register
class SnapKv(Eviction):
    """Keep the tokens that the last `window` queries attend to most, with their neighbours, and the window itself.

    The weights of the window are summed for each token in front of it, then pooled over `kernel` tokens. Each head
    keeps its own. The prompt is compressed once, and what follows stays; with `every`, the same is done again by the
    last `window` queries of what was read and written until then, which are held for it. Query-aware: the window is
    the end of the prompt, the question where there is one.

    Differs from the paper:
        With grouped queries a head's score is the mean over its group. kvpress takes a window of 64 and the mean
        over 5 tokens.
    """

    source: ClassVar[str] = "Li et al. 2024, SnapKV: LLM Knows What You are Looking for Before Generation"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AWARE,)
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="speed_at_16k",
            statement="3.6 times the generation speed with 16K tokens of context, in an eighth of the memory.",
            source="Li et al. 2024, SnapKV, abstract",
            expression="tpot(full_cache) / tpot(snapkv[ratio=0.125])",
            expected=at_least(3.4),
            conditions={"device": "cuda", "model": "*lwm-*|*longchat-7b*|*mistral-7b*|*mixtral*"},
            needs={"workload.context": ">=16000"},
            workload={"name": "long_document", "context": 16384},
        ),
        Claim(
            name="quality_at_16k",
            statement="Quality is comparable with 16K tokens of context, in an eighth of the memory.",
            source="Li et al. 2024, SnapKV, abstract (comparable performance)",
            expression="nll(snapkv[ratio=0.125]) - nll(full_cache)",
            expected=at_most(0.01),
            conditions={"device": "cuda", "model": "*lwm-*|*longchat-7b*|*mistral-7b*|*mixtral*"},
            needs={"workload.context": ">=16000"},
            workload={"name": "long_document", "context": 16384},
        ),
    )
    window: int = Field(default=32, ge=1)
    """Last queries of the prompt that are asked, and kept [tokens]."""
    kernel: int = Field(default=7, ge=1)
    """Neighbourhood over which scores are pooled, odd [tokens]."""
    pooling: Literal["max", "mean"] = "max"
    """What a neighbourhood counts for."""

    @field_validator("kernel")
    @classmethod
    def _has_a_middle(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} has no middle; give an odd number")
        return kernel

    @property
    def asks(self) -> int:
        return self.window

    def least(self, kept: int) -> int:
        return self.window + 1

    def plans(self, context: int, new_tokens: int, layers: int) -> list[Plan]:
        if self.window >= context:
            raise Unsupported(
                f"a window of {self.window} queries leaves nothing in front of it in a context of {context} tokens; "
                f"give a window of {context - 1} at most"
            )
        return super().plans(context, new_tokens, layers)

    def importance(self, seen: Seen) -> Tensor:
        received = seen.received(last=self.window)[..., : -self.window].mean(2)
        return pad(pooled(received, self.kernel, self.pooling), (0, self.window), value=torch.inf)
