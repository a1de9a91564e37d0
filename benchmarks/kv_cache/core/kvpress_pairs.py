"""What is held against kvpress: our policies, the presses beside them, and the tokens that both read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bench import registry, text
from bench.errors import UsageError
from bench.families.kv_cache import KVCache
from bench.models import Source

COMPRESSION = 0.75
"""Share of the context that goes."""


class Pair(NamedTuple):
    """One policy of ours and the press beside it."""

    technique: str
    ours: Mapping[str, Any]
    press: str
    theirs: Mapping[str, Any]
    differs: str = ""
    """Why the definitions differ; empty where they do not, and the choice must be the same."""
    moves: bool = False
    """Whether ours goes on letting go while decoding, so that logits are not comparable."""

    def policy(self, context: int, new: int) -> KVCache:
        """Ours, with a budget that leaves of the context what the press leaves."""
        budget = kept_tokens(context)
        return technique(self.technique, **self.ours, budget=budget if self.moves else budget + new)


PAIRS = (
    Pair("knorm", {}, "KnormPress", {}),
    Pair("keydiff", {}, "KeyDiffPress", {}),
    Pair("expected_attention", {}, "ExpectedAttentionPress", {}),
    Pair(
        "snapkv",
        {"window": 16, "kernel": 5, "pooling": "mean"},
        "SnapKVPress",
        {"window_size": 16, "kernel_size": 5},
    ),
    Pair(
        "adakv",
        {"window": 16, "kernel": 5, "pooling": "mean", "safeguard": 0.0},
        "AdaKVPress",
        {"alpha_safeguard": 0.0, "press": ["SnapKVPress", {"window_size": 16, "kernel_size": 5}]},
    ),
    Pair(
        "pyramidkv",
        {"window": 16, "kernel": 5, "pooling": "mean"},
        "PyramidKVPress",
        {"window_size": 16, "kernel_size": 5},
        "kvpress lets the window share in the slope, rounds each layer by itself, and is SnapKV where a layer would "
        "keep less than the window",
    ),
    Pair(
        "tova",
        {"every": None},
        "TOVAPress",
        {},
        "kvpress keeps the last token in any case; here its own weight decides",
    ),
    Pair(
        "h2o",
        {"recent": 0.0, "every": None},
        "ObservedAttentionPress",
        {},
        "kvpress divides a token's sum by the number of queries that saw it; H2O does not",
    ),
    Pair("streaming_llm_absolute", {}, "StreamingLLMPress", {"n_sink": 4}, moves=True),
)


def technique(name: str, **parameters: Any) -> KVCache:
    """One of ours, by its registered name."""
    entry = registry.techniques[name]
    made: Any = entry.cls(**{**entry.parameters, **parameters})
    return made  # type: ignore[no-any-return]


def kept_tokens(context: int) -> int:
    """What is left of a context, as kvpress rounds it [tokens]."""
    return max(1, int(context * (1 - COMPRESSION)))


def ids_of(source: Source, count: int) -> tuple[str, list[int]]:
    """Where the ids come from, and `count` of them: of the embedded text, or drawn where the network is random.

    Raises:
        UsageError: the embedded text is shorter.
    """
    if source.is_random:
        draw = torch.Generator().manual_seed(0)
        return "random ids", torch.randint(0, 250, (count,), generator=draw).tolist()
    whole = "\n\n".join(text.documents("test").values())
    ids: list[int] = source.tokenizer(whole)["input_ids"]
    if len(ids) < count:
        raise UsageError(f"the embedded text has {len(ids)} tokens, {count} are asked for; give a shorter --context")
    return "embedded text, test split", ids[:count]


def their_environment() -> dict[str, str]:
    """Of a process of theirs: ours, without progress bars."""
    return {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
