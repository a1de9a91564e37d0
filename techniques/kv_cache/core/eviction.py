"""Eviction by importance: a policy scores the tokens of a layer, and the best ones stay.

A cache never holds more than its budget, tokens to come included. A policy that looks at the prompt only leaves room
for all of them at once; one that goes on lets `every` tokens come, then makes room for as many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers.cache_utils import Cache

from bench.errors import Unsupported
from bench.families import cache as kv
from bench.families.kv_cache import KVCachePrepared
from bench.models import Sources
from bench.registry import stem
from techniques.kv_cache.core.attending import check_layers, link
from techniques.kv_cache.core.budget import Budgeted
from techniques.kv_cache.core.ragged import RaggedLayer
from techniques.kv_cache.core.scores import Seen


@dataclass(frozen=True)
class Plan:
    """What one layer holds."""

    kept: int
    """Behind the prompt and behind each eviction, the mean over heads [tokens]."""
    room: int
    """For tokens that come before the next eviction [tokens]."""
    goes_on: bool
    """Whether there is a next one."""


class Eviction(Budgeted):
    """Base of the policies that score tokens: a technique says how important each one is."""

    apart: ClassVar[bool] = False
    """Whether heads keep different numbers of tokens; such scores go by the latest queries, see `asks`."""
    watches: ClassVar[bool] = False
    """Whether the scores need the attention weights of every token: see `first_marks` and `mark`."""

    every: int | None = Field(default=None, ge=1)
    """New tokens between two evictions while decoding; none: the prompt is compressed, and all that follows stays
    [tokens]."""

    @property
    def asks(self) -> int:
        """Latest queries that are held for the scores, which are then given all in the order of the text; 0: scores
        need the new token's alone, and no order [tokens]."""
        return 0

    @abstractmethod
    def importance(self, seen: Seen) -> Tensor:
        """How much each held token is worth, `(batch, kv_heads, held)`; infinite for those that stay in any case."""

    def least(self, kept: int) -> int:
        """The fewest tokens that can be kept of a budget for `kept`: those that stay in any case, and one [tokens]."""
        return 1

    def period(self, size: int) -> int | None:
        """Tokens between two evictions of a cache for `size` tokens; none for a single one behind the prompt."""
        return self.every

    def of_layers(self, kept: int, context: int, layers: int) -> list[int]:
        """How many tokens each layer keeps of a context, with mean `kept`."""
        return [kept] * layers

    def of_heads(self, importance: Tensor, kept: int) -> Tensor:
        """How many tokens each head of a layer keeps, with mean `kept`: `(batch, kv_heads)` int64."""
        return torch.full(importance.shape[:2], kept)

    def first_marks(self, seen: Seen) -> Tensor:
        """What is noted about the prompt's tokens, `(batch, kv_heads, tokens)` float32, if the policy `watches`."""
        raise NotImplementedError

    def mark(self, marks: Tensor, weights: Tensor, left: int) -> None:
        """Add to `marks` (..., held) what the weights `(..., group, held)` of a new token say.

        Args:
            left: tokens that may come before the next eviction.
        """

    def forget(self, marks: Tensor) -> None:
        """Change the marks `(batch, kv_heads, held)` of those that stay, behind an eviction."""

    def prepare(self, sources: Sources) -> KVCachePrepared:
        check_layers(sources.target.config)
        prepared = super().prepare(sources)
        link(prepared.model)
        return prepared

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        config = prepared.model.config
        kv.check_length(config, context + new_tokens)
        plans = self.plans(context, new_tokens, check_layers(config))
        return Cache(layers=[ScoredLayer(self, index, plan, prepared.state) for index, plan in enumerate(plans)])

    def plans(self, context: int, new_tokens: int, layers: int) -> list[Plan]:
        """What each layer holds.

        Raises:
            Unsupported: the budget has no room for what must be in it.
        """
        total = context + new_tokens
        size = self.size(total)
        if size >= total:
            return [Plan(context, new_tokens, False)] * layers
        every = self.period(size)
        goes_on = every is not None and every < new_tokens
        room = every if every is not None and goes_on else new_tokens
        kept = size - room
        needed = self.least(max(kept, 1))
        if kept < needed:
            hint = "" if goes_on else ", or every=1 to go on evicting"
            raise Unsupported(
                f"a budget of {size} of {total} tokens leaves {max(kept, 0)} beside {room} to come, and "
                f"{stem(type(self))} needs {needed}: give a ratio of {(needed + room) / total:.3g} or a budget of "
                f"{needed + room} at least{hint}"
            )
        if goes_on:  # shares are of the whole text, of which the context may be the smaller part
            shares = self.of_layers(kept, total, layers)
            return [Plan(min(share, context), share + room - min(share, context), True) for share in shares]
        shares = self.of_layers(min(kept, context), context, layers)
        return [Plan(share, kept + room - min(kept, context), False) for share in shares]


class ScoredLayer(RaggedLayer):
    """The cache of one layer under a policy."""

    def __init__(self, policy: Eviction, index: int, plan: Plan, state: Any) -> None:
        super().__init__()
        self.policy = policy
        self.index = index
        self.plan = plan
        self.state = state
        self.left = plan.room
        """Tokens that may come before the next eviction [tokens]."""
        self.watching = policy.watches and plan.goes_on
        self.asked: Tensor | None = None
        """The latest queries `(batch, heads, asks, head_dim)`, where a policy asks them: token t's in slot t % asks."""

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        tokens = keys.shape[-2]
        positions = torch.arange(tokens, device=keys.device).expand(*keys.shape[:2], -1)
        seen = Seen(self.index, tokens, self.plan.kept, query, keys, values, positions, scaling, state=self.state)
        notes: dict[str, Tensor] = {}
        if self.policy.watches and (self.watching or self.plan.kept < tokens):
            notes["marks"] = self.policy.first_marks(seen)
            seen = replace(seen, marks=notes["marks"])
        kept = [[positions[0, 0]] * keys.shape[1] for _ in range(keys.shape[0])]
        if self.plan.kept < tokens:
            importance = self.policy.importance(seen)
            counts = self.policy.of_heads(importance, self.plan.kept)
            # stable: pooled scores are often equal, and a row's choice must not depend on its neighbours
            best = importance.sort(dim=-1, descending=True, stable=True).indices
            kept = [
                [index[:count].sort().values for index, count in zip(*of_row, strict=True)]
                for of_row in zip(best, counts.tolist(), strict=True)
            ]
        rooms = torch.full(keys.shape[:2], self.plan.room)
        self.store(keys, values, kept, rooms, notes if self.watching else {})
        if self.watching and self.plan.kept < tokens:
            self.policy.forget(self.padded(self.columns["marks"]))
        if self.plan.goes_on and self.policy.asks:
            self.asked = query[:, :, -self.policy.asks :].roll(tokens % self.policy.asks, 2)

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        self.left -= 1
        if self.asked is not None:
            self.asked[:, :, (self.seen - 1) % self.asked.shape[2]] = query[:, :, 0]
        out = self.attend(module, query, scaling)
        if self.plan.goes_on and self.left == 0:
            with self.phase("evict"):
                self._evict(query, scaling)
        return out

    def watch(self, weights: Tensor, notes: Mapping[str, Tensor]) -> None:
        self.policy.mark(notes["marks"], weights, self.left)

    def _evict(self, query: Tensor, scaling: float) -> None:
        """Make room for as many tokens as come between two evictions."""
        self.left = self.policy.period(self.plan.kept + self.plan.room) or 0
        kept = self.plan.kept + self.plan.room - self.left
        columns = {name: self.padded(column) for name, column in self.columns.items()}
        keys, values, places = self.padded(self.keys), self.padded(self.values), columns["places"]
        if self.level is None:  # such a slot sees nothing and is worth nothing
            places = places.masked_fill(~self.filled(), -1)
        order = None
        if self.asked is not None:
            # each query sees what lies before it, so what is held is put in the order of the text
            query = self.asked.roll(-self.seen, 2)
            order = places.argsort(-1)
            keys, values = (part.take_along_dim(order[..., None], 2) for part in (keys, values))
            places = places.gather(-1, order)
        marks = columns.get("marks")
        seen = Seen(self.index, self.seen, kept, query, keys, values, places, scaling, marks, self.state)
        importance = self.policy.importance(seen)
        if self.policy.apart:
            assert order is not None
            self._share(importance.masked_fill(places < 0, -torch.inf), order, kept)
            return
        one = self.level == kept + 1
        if order is None:
            chosen = importance.argmin(-1) if one else importance.topk(kept, -1).indices
        else:
            # pooled scores are often equal: of such the first of the text stay, as behind the prompt
            ranked = order.gather(-1, importance.sort(dim=-1, descending=True, stable=True).indices)
            chosen = ranked[..., -1] if one else ranked[..., :kept]
        if one:
            self.drop(chosen)
        else:
            self.keep(torch.zeros_like(importance, dtype=torch.bool).scatter_(-1, chosen, True))
        if self.watching:
            self.policy.forget(self.padded(self.columns["marks"]))

    def _share(self, importance: Tensor, order: Tensor, kept: int) -> None:
        """Keep of each head its share, by scores in the order of the text; what a head lacks the others get."""
        counts = self.policy.of_heads(importance, kept).to(order.device)
        scores, ranked = importance.sort(dim=-1, descending=True, stable=True)
        best = (torch.arange(ranked.shape[-1], device=order.device) < counts[..., None]) & (scores > -torch.inf)
        for own, of_row in zip(best, scores.masked_fill(best, -torch.inf), strict=True):
            own.view(-1)[of_row.flatten().topk(kept * len(own) - int(own.sum())).indices] = True
        self.keep(torch.zeros_like(best).scatter_(-1, order.gather(-1, ranked), best))
        if int((self.capacities - self.lengths).min()) < self.left:
            self.regrow(torch.full_like(self.lengths, self.left))

    def held(self) -> list[Tensor]:
        return [*super().held(), *([] if self.asked is None else [self.asked])]
