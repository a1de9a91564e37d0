"""StreamingLLM: the first few tokens, which soak up attention, and a window of the latest ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers.cache_utils import Cache

from bench.claim import Claim, at_most, below
from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families.attention import packed_sdpa
from bench.families.kv_cache import QUERY_AGNOSTIC, KVCachePrepared
from bench.models import Sources
from bench.registry import register
from techniques.kv_cache.core.attending import check_layers
from techniques.kv_cache.core.budget import Budgeted
from techniques.kv_cache.core.rotation import Rotation, rotation_of


class StreamingLayer(kv.EvictingLayer):
    """Sinks on the left, a ring of the latest tokens behind: `(batch, kv_heads, sinks + window, head_dim)`.

    A token at position p lies in slot p, later in `sinks + (p - sinks) % window`: attention does not ask in which
    order its keys lie, each carries its own position.
    """

    reads_prompt = False

    def __init__(self, size: int, sinks: int, rotation: Rotation | None) -> None:
        super().__init__()
        self.size = size
        self.sinks = sinks
        self.rotation = rotation
        self.unturned: Tensor | None = None
        """The sinks' keys at their own positions, `(batch, kv_heads, sinks, head_dim)`, once they are turned."""

    @property
    def filled(self) -> int:
        return min(self.seen, self.size)

    @property
    def evicted(self) -> int:
        return self.seen - self.filled

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads = key_states.shape[:2]
        self.keys = key_states.new_empty(batch, heads, self.size, key_states.shape[-1])
        self.values = value_states.new_empty(batch, heads, self.size, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep what the budget allows of `(batch, kv_heads, new, head_dim)`; return what is attended to.

        The prompt attends to itself in full: its dense keys are returned, and live no longer than this layer.
        """
        new = key_states.shape[-2]
        if self.seen == 0:
            self.lazy_initialization(key_states, value_states)
            self.seen = new
            for slots, positions in self._places(new):
                self.keys[:, :, slots] = key_states[:, :, positions]
                self.values[:, :, slots] = value_states[:, :, positions]
            return key_states, value_states
        assert new == 1, f"{new} tokens at once behind the prompt: a window per token is not supported"
        slot = self._slot(self.seen)
        self.seen += 1
        self.keys[:, :, slot] = key_states[:, :, 0]
        self.values[:, :, slot] = value_states[:, :, 0]
        if self.rotation is not None and self.evicted:
            if self.unturned is None:
                self.unturned = self.keys[:, :, : self.sinks].clone()
            # in-cache positions (section 3.2), relative to the query's own: the window keeps its distances, the
            # sinks come nearer by what is missing between
            self.keys[:, :, : self.sinks] = self.rotation(self.unturned, self.evicted)
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        raise AssertionError("a prompt is stored as it comes")

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        """Attend with `(batch, heads, 1, head_dim)` to all that is held -> `(batch, 1, heads, head_dim)`."""
        keys, values = self.keys[:, :, : self.filled], self.values[:, :, : self.filled]
        return packed_sdpa(module, query, keys, values, None, scaling=scaling)[0]

    def _slot(self, position: int) -> int:
        if position < self.sinks:
            return position
        return self.sinks + (position - self.sinks) % (self.size - self.sinks)

    def _places(self, tokens: int) -> list[tuple[slice, slice]]:
        """Where a prompt's tokens go, as pairs of slots and positions."""
        if tokens <= self.size:
            return [(slice(0, tokens), slice(0, tokens))]
        window = self.size - self.sinks
        oldest = tokens - window
        split = self._slot(oldest)  # the ring's slots from here on hold the older part of the window
        older = self.size - split
        return [
            (slice(0, self.sinks), slice(0, self.sinks)),
            (slice(split, self.size), slice(oldest, oldest + older)),
            (slice(self.sinks, split), slice(oldest + older, tokens)),
        ]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (min(self.seen + 1, self.size) if self.seen else query_length), 0

    def held(self) -> list[Tensor]:
        return [self.keys, self.values, *([] if self.unturned is None else [self.unturned])]

    def positions(self) -> Tensor:
        slots = torch.arange(self.filled, device=self.keys.device)
        last, ring = self.seen - 1 - self.sinks, slots - self.sinks
        latest = self.sinks + last - (last - ring) % max(self.size - self.sinks, 1)
        held = torch.where((slots < self.sinks) | (self.evicted == 0), slots, latest)
        return held.expand(*self.keys.shape[:2], -1)

    def seen_at(self) -> Tensor:
        held = self.positions()
        return held if self.rotation is None else torch.where(held < self.sinks, held + self.evicted, held)


@register
class StreamingLlm(Budgeted):
    """Keep the keys and values of the first `sinks` tokens and of a window of the latest ones.

    The window counts the current token. With `reindexed` positions, as in the paper, a key is seen at its place in
    the cache; with `absolute` ones at its place in the text. The re-indexed form stores the sinks' keys a second
    time, as they were, and turns them anew at every step, so that no error builds up. Query-agnostic.

    Differs from the paper:
        The prompt attends to itself in full and is evicted afterwards, as other eviction methods do; the paper
        streams every token through the window. Keys are cached behind their rotation and only the sinks are
        turned: attention sees distances only, so this equals the paper's cache of keys before it.
    """

    source: ClassVar[str] = "Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, section 3.2"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AGNOSTIC,)
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="sinks_over_window",
            statement="Behind a text longer than the cache, keeping the first tokens helps where a window alone fails.",
            source="Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, abstract",
            expression="nll(streaming_llm) - nll(window_attention)",
            expected=below(0.0),
            conditions={"model": "*llama-2*|*mpt-*|*falcon-*|*pythia-*", "device": "cuda"},
            workload={"name": "long_document", "context": 1024},
        ),
        Claim(
            name="stable_beyond_the_window",
            headline="StreamingLLM: the loss stays level far beyond the cache.",
            statement="Stable on texts far longer than the cache: the loss rises no more than the full cache's.",
            source="Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, abstract",
            expression="nll_rise(streaming_llm[window=124]) - nll_rise(full_cache)",
            expected=at_most(0.1),
            conditions={"model": "*llama-2*|*mpt-*|*falcon-*|*pythia-*", "device": "cuda"},
            needs={"workload.new_tokens": ">=512"},
            out_of_reach="the paper goes to four million tokens, the full cache ends with the model's context",
            workload={"name": "long_document", "context": 512, "new_tokens": 512},
        ),
    )
    sizes: ClassVar[tuple[str, ...]] = ("ratio", "budget", "window")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "streaming_llm_absolute": {"positions": "absolute"},
        "window_attention": {"sinks": 0},
    }

    sinks: int = Field(default=4, ge=0, le=1024)
    """First tokens that are never evicted; 0: plain window attention [tokens]."""
    window: int | None = Field(default=None, ge=1)
    """Latest tokens kept, the current one included, behind the sinks; or give `ratio` or `budget` [tokens]."""
    positions: Literal["reindexed", "absolute"] = "reindexed"
    """At which position a kept key is seen: its place in the cache (the paper's) or in the text."""

    def size(self, tokens: int) -> int:
        """Tokens kept of so many, sinks included.

        Raises:
            Unsupported: nothing is left for the window.
        """
        if self.window is not None:
            return min(self.sinks + self.window, tokens)
        size = super().size(tokens)
        if size <= self.sinks:
            raise Unsupported(
                f"{size} of {tokens} tokens is no room for a window behind {self.sinks} sinks; give a ratio above "
                f"{(self.sinks + 1) / tokens:.3g}, a budget above {self.sinks}, or fewer sinks"
            )
        return size

    def prepare(self, sources: Sources) -> KVCachePrepared:
        check_layers(sources.target.config)
        prepared = super().prepare(sources)
        if self.positions == "reindexed" and self.sinks:
            prepared.state = rotation_of(prepared.model)
        return prepared

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        config = prepared.model.config
        kv.check_length(config, context + new_tokens)
        size = self.size(context + new_tokens)
        return Cache(layers=[StreamingLayer(size, self.sinks, prepared.state) for _ in kv.sliding_layers(config)])
