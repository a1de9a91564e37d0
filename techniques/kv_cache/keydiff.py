"""KeyDiff: keys unlike the others are the ones that get attention."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bench.families.kv_cache import QUERY_AGNOSTIC
from bench.registry import register
from techniques.kv_cache.core.eviction import Eviction
from techniques.kv_cache.core.scores import Seen


@register
class KeyDiff(Eviction):
    """Keep the tokens whose keys are least similar, by cosine, to the mean direction of all keys held.

    Each head keeps its own. Query-agnostic: no attention is computed.

    Differs from the paper:
        The prompt is read at once and compressed behind it. The paper reads it in blocks and evicts behind each, to
        bound the memory of the prompt as well. Keys carry their rotary positions, as in the paper.
    """

    source: ClassVar[str] = "Park et al. 2025, KeyDiff: Key Similarity-Based KV Cache Eviction"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)

    def importance(self, seen: Seen) -> Tensor:
        keys = seen.keys.float()
        anchor = normalize(keys, dim=-1).mean(-2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)
