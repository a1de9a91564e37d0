"""FastGen: each head is profiled behind the prompt, and keeps what its own attention needs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers.cache_utils import Cache

from bench.claim import Claim, about, above, at_most
from bench.families import cache as kv
from bench.families.kv_cache import QUERY_AWARE, KVCachePrepared
from bench.models import Sources
from bench.registry import register
from techniques.kv_cache.core.attending import check_layers, link
from techniques.kv_cache.core.budget import Budgeted
from techniques.kv_cache.core.profile import (
    SPECIAL,
    Part,
    affordable,
    kinds_of_ids,
    members,
    received,
    share_of,
    sufficient,
)
from techniques.kv_cache.core.ragged import RaggedLayer, quick
from techniques.kv_cache.core.scores import Seen


class FastGenLayer(RaggedLayer):
    """The cache of one layer whose heads have policies of their own.

    A policy is the number of parts of the chain that a head keeps, in their order; one more is everything.
    """

    def __init__(self, technique: FastGen, index: int, kinds: Tensor, new_tokens: int) -> None:
        super().__init__()
        self.technique = technique
        self.index = index
        self.kinds_of_ids = kinds
        self.new_tokens = new_tokens
        self.policies = torch.empty(0, dtype=torch.int64)
        """`(batch, kv_heads)`, once the prompt is profiled."""
        self.needs_marks: list[list[bool]] = []
        """Of each head: whether its policy asks for frequent tokens, and keeps less than everything."""
        self.marks_new = False
        self.every = self.left = 0
        """Tokens between two evictions, and those that come before the next [tokens]."""
        self.block = 0
        """Free slots that a head is given at once, more than `every` where that is little: it copies the layer."""
        self.queries: list[Tensor] = []
        """Of the tokens since the last one, `(batch, kv_heads, group, head_dim)` each, where a head needs marks."""

    def reading(self, ids: Tensor) -> None:
        self.kinds = self.kinds_of_ids[ids]  # (batch, new)

    def notes(self) -> Mapping[str, Tensor]:
        return {"kinds": self.kinds.expand(*self.lengths.shape)}

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        tokens = keys.shape[-2]
        positions = torch.arange(tokens, device=keys.device).expand(*keys.shape[:2], -1)
        of_rows = self.kinds.clone()
        of_rows[:, : self.technique.sinks] = SPECIAL
        kinds = of_rows[:, None].expand_as(positions)
        seen = Seen(self.index, tokens, tokens, query, keys, values, positions, scaling)
        self.policies, kept, marks = self.technique.profile(seen, kinds, self.new_tokens)
        seldom = blocked(tokens)
        self.every = self.left = self.technique.every or seldom
        self.block = max(self.every, seldom)
        full = self._full()
        self.evicts = not bool(full.all())
        block = min(self.block, self.new_tokens)
        rooms = torch.tensor([[self.new_tokens if whole else block for whole in row] for row in full.tolist()])
        index = [[head.nonzero()[:, 0] for head in row] for row in kept]
        order = self.technique.order
        frequent = self.policies > order.index("frequent") if "frequent" in order else torch.zeros_like(full)
        self.needs_marks = (frequent & ~full).tolist()
        self.marks_new = any(map(any, self.needs_marks))
        self.store(keys, values, index, rooms, {"kinds": kinds, "marks": marks} if self.evicts else {})

    def held(self) -> list[Tensor]:
        return [*super().held(), *self.queries]

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        out = self.attend(module, query, scaling)
        self.left -= 1
        if self.marks_new:
            own = query.reshape(*self.lengths.shape, -1, query.shape[-1])
            self.queries.append(own.clone())  # not a view of more: of a batch, or of keys and values
        if self.evicts and self.left == 0:
            with self.phase("evict"):
                self._mark(scaling)
                self._evict()
        return out

    def _mark(self, scaling: float) -> None:
        """Add to the marks what the tokens since the last eviction attended to, each to those up to itself."""
        if not self.queries:
            return
        queries = torch.stack(self.queries, 3)  # (batch, kv_heads, group, new, head_dim)
        new = queries.shape[3]
        future = torch.ones(new, new, dtype=torch.bool, device=queries.device).triu(1)
        for row, of_row in enumerate(self.needs_marks):
            for head in itertools.compress(itertools.count(), of_row):
                held = self.segment(row, head)  # the new tokens are its last ones
                scores = (quick(queries[row, head]) * scaling) @ quick(self.keys[held]).T  # (group, new, held)
                scores[..., -new:].masked_fill_(future, -torch.inf)
                self.columns["marks"][held] += scores.float().softmax(-1).sum((0, 1)) / len(scores)
        self.queries.clear()

    def _evict(self) -> None:
        """Let go of what the heads' policies no longer cover, and make room for the tokens until the next time."""
        self.left = self.every
        there = self.filled()
        marks = self.padded(self.columns["marks"]).masked_fill(~there, -torch.inf)
        kinds = self.padded(self.columns["kinds"])
        unions = self.technique.unions(kinds, marks, self.positions(), self.seen)
        self.keep(chosen(unions, self.policies) & there)
        free = self.capacities - self.lengths
        full = self._full().cpu()  # they have room for everything
        if bool(((free < self.left) & ~full).any()):
            self.regrow(torch.where(full, free, self.block))

    def _full(self) -> Tensor:
        return self.policies > len(self.technique.order)


def blocked(tokens: int) -> int:
    """Slots for tokens to come that a head is given at once behind so many [slots]."""
    return max(16, tokens // 32)


def chosen(unions: list[Tensor], policies: Tensor) -> Tensor:
    """What each head's policy keeps: of the growing `unions` (batch, kv_heads, held) the one of that number."""
    return torch.stack(unions).gather(0, (policies - 1)[None, ..., None].expand(1, *unions[0].shape))[0]


def _pruned(name: str, recovery: float, percent: float, headline: str = "") -> Claim:
    """A cell of table 1: how much of the cache of a 7B model is let go of."""
    return Claim(
        name=name,
        headline=headline,
        statement=f"With {100 * recovery:.0f} % recovered, {percent} % of the cache's tokens are pruned.",
        source="Ge et al. 2024, FastGen, table 1 (7B)",
        expression=f"counts.kept_tokens(fastgen[recovery={recovery}]) / counts.kept_tokens(full_cache)",
        expected=about(1 - percent / 100, 0.03),
        conditions={"model": "*llama-7b*", "device": "cuda", "workload.context": "512"},
        needs={"weights": "trained|on a 4-bit grid"},
        workload={"name": "long_document", "context": 512},
    )


def _costs_more(part: Part, than: Part) -> Claim:
    """Two rows of the ablation: a chain without the first part lets go of less than one without the second."""
    words, percent = zip(*(ABLATED[one] for one in (part, than)), strict=True)
    arms = (f"fastgen_without_{one}[recovery=0.98]" for one in (part, than))
    return Claim(
        name=f"{part}_before_{than}",
        statement=(
            f"Leaving out {words[0]} costs more than leaving out {words[1]}: {percent[0]} % and {percent[1]} % pruned."
        ),
        source="Ge et al. 2024, FastGen, ablation of policies (T = .98, 65B)",
        expression=" / ".join(f"counts.kept_tokens({arm})" for arm in arms),
        expected=above(1.0),
        conditions={"model": "*llama-65b*", "device": "cuda"},
        needs={"weights": "trained|on a 4-bit grid"},
        workload={"name": "long_document", "context": 1024},
    )


ABLATED: Mapping[Part, tuple[str, float]] = {
    "frequent": ("frequent tokens", 21.3),
    "local": ("the latest", 30.2),
    "special": ("special tokens", 31.2),
    "punctuation": ("punctuation", 34.2),
}
"""Part that is left out -> its name in a sentence, and how much of a 65B model's cache is then pruned [%]."""


@register
class FastGen(Budgeted):
    """Profile each head behind the prompt; it keeps the smallest set of tokens that recovers its attention.

    Candidates grow along a chain: special tokens, then also punctuation, then also the most frequent tokens (the
    share `frequent` with the most attention so far), then also the latest (the share `local`), at last everything.
    The recovery of a set is the share of the attention that falls on it, as a mean over all queries of the prompt:
    half the L1 norm between a head's attention and what remains of it, renormalised, is 1 minus that share. The
    first set with a recovery of `recovery` is the head's policy, and stays so while decoding: with every `every`
    tokens those go that the policy does not cover, new ones and old. Shares are of the tokens seen so far.
    `recovery=1` keeps everything, in any precision. With `ratio` or `budget` each layer has the highest recovery whose
    sets fit, as far as the prompt tells what they grow to.

    Every head's storage is what it keeps, and slots for the next tokens, 16 at least or a 32nd of the prompt's; where
    they are used up, the layer is laid out anew. Frequent tokens are the best of all that are held, also of those that
    another part of the chain keeps. Beside keys and values a slot of an evicting layer has 9 bytes: position, kind, and
    attention received so far; what new tokens attended to is added up behind the last of them, from their queries,
    which are held until then. Query-aware: all queries of the prompt count.

    Differs from the paper:
        The paper applies a head's policy to each new token (`every=1`); here tokens that it does not cover stay until
        the slots for new ones are used up, for a fraction of the time. The norm of equation 1 is half the L1 norm,
        which the paper leaves open. With grouped queries, which it leaves to later work, keys and values are
        kept per key/value head: its recovery is the mean, or the least, of its group's, and its frequent tokens
        those of the group's mean attention. The local set of a query is the latest tokens before that query, so
        a short prompt's first queries are recovered in full. A set may keep no token at all, where the prompt
        has none of its kind; a new token attends to itself in any case.
    """

    source: ClassVar[str] = "Ge et al. 2024, Model Tells You What to Discard (FastGen), algorithms 1 and 2, equation 1"
    labels: ClassVar[tuple[str, ...]] = (QUERY_AWARE,)
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="recovery",
            statement="With 98 % recovered, quality is that of the full cache: win rate 49.8 %.",
            source="Ge et al. 2024, FastGen, table 1 (65B)",
            expression="nll(fastgen[recovery=0.98]) - nll(full_cache)",
            expected=at_most(0.01),
            conditions={"model": "*llama-65b*", "device": "cuda"},
            out_of_reach="win rates of answers are no figure of this program",
            workload={"name": "long_document", "context": 1024},
        ),
        _pruned("pruned_at_91", 0.91, 56.6),
        _pruned("pruned", 0.95, 39.8, "FastGen prunes 39.8 % of the cache where 95 % is recovered."),
        _pruned("pruned_at_98", 0.98, 16.9),
        Claim(
            name="profiling_cost",
            statement="Profiling the heads takes 0.07 % to 0.35 % of the time of a generation.",
            source="Ge et al. 2024, FastGen, the costs of profiling",
            expression="choosing_share(fastgen)",
            expected=at_most(0.0035),
            conditions={"model": "*llama-*", "device": "cuda"},
            needs={"workload.new_tokens": ">=128"},
            workload={"name": "long_document", "context": 1024, "new_tokens": 128, "items": 1},
        ),
        Claim(
            name="frequent_prunes_most",
            statement="Without frequent tokens in the chain the cache is larger: 21.3 % pruned, not 36.0 %.",
            source="Ge et al. 2024, FastGen, ablation of policies (T = .98, 65B)",
            expression=(
                "counts.kept_tokens(fastgen_without_frequent[recovery=0.98]) / "
                "counts.kept_tokens(fastgen[recovery=0.98])"
            ),
            expected=above(1.0),
            conditions={"model": "*llama-65b*", "device": "cuda"},
            needs={"weights": "trained|on a 4-bit grid"},
            workload={"name": "long_document", "context": 1024},
        ),
        _costs_more("frequent", "punctuation"),
        _costs_more("frequent", "local"),
        _costs_more("local", "special"),
        _costs_more("special", "punctuation"),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fastgen_without_special": {"order": ("punctuation", "frequent", "local")},
        "fastgen_without_punctuation": {"order": ("special", "frequent", "local")},
        "fastgen_without_frequent": {"order": ("special", "punctuation", "local")},
        "fastgen_without_local": {"order": ("special", "punctuation", "frequent")},
        "fastgen_frequent_first": {"order": ("special", "frequent", "local", "punctuation")},
        "fastgen_local_only": {"order": ("local",), "recovery": 0.0},
        "fastgen_frequent_only": {"order": ("frequent",), "recovery": 0.0},
        "fastgen_frequent_and_local": {"order": ("frequent", "local"), "recovery": 0.0, "first": 2},
    }

    sizes: ClassVar[tuple[str, ...]] = ("recovery", "ratio", "budget")

    recovery: float | None = Field(default=0.95, ge=0.0, le=1.0)
    """Share of its attention that a head's policy must recover, the paper's T; or give `ratio` or `budget`."""
    ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of context and new tokens that a layer's heads have slots for in the mean, at most."""
    budget: int | None = Field(default=None, ge=1)
    """Slots of a layer's heads in the mean, at most [tokens]."""
    order: tuple[Part, ...] = Field(default=("special", "punctuation", "frequent", "local"), min_length=1)
    """The chain: parts that are added one by one, before everything."""
    first: int = Field(default=1, ge=1)
    """Parts of the chain that every head keeps; 1: the first alone, where that is enough."""
    sinks: int = Field(default=0, ge=0, le=1024)
    """First tokens that count as special, whatever they are: 1 where the tokenizer puts no begin-of-text there
    [tokens]."""
    frequent: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the tokens that are frequent ones, the paper's r_f."""
    local: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the tokens that are local ones, the paper's r_l."""
    every: int | None = Field(default=None, ge=1)
    """New tokens between two evictions while decoding, the paper's is 1; by default a 32nd of the prompt's, 16 at
    least [tokens]."""
    group: Literal["mean", "min"] = "mean"
    """How the query heads of a key/value head agree on its recovery."""

    @model_validator(mode="after")
    def _no_part_twice(self) -> Self:
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order={', '.join(self.order)} names a part twice")
        if self.first > len(self.order):
            raise ValueError(f"first={self.first} of a chain of {len(self.order)}; give at most as many")
        return self

    def prepare(self, sources: Sources) -> KVCachePrepared:
        check_layers(sources.target.config)
        prepared = super().prepare(sources)
        link(prepared.model)
        kinds = kinds_of_ids(sources.target.tokenizer, sources.target.config.get_text_config(decoder=True).vocab_size)
        prepared.state = kinds.to(prepared.model.get_input_embeddings().weight.device)
        return prepared

    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        config = prepared.model.config
        kv.check_length(config, context + new_tokens)
        layers = range(check_layers(config))
        return Cache(layers=[FastGenLayer(self, index, prepared.state, new_tokens) for index in layers])

    def profile(self, seen: Seen, kinds: Tensor, new_tokens: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """The heads' policies behind a prompt whose tokens are of these `kinds` (batch, kv_heads, tokens).

        `new_tokens` are to come [tokens].

        Returns:
            Policies `(batch, kv_heads)`, the tokens kept `(batch, kv_heads, tokens)`, and the attention that each
            token received, `(batch, kv_heads, tokens)`: the mean over the group, summed over queries.
        """
        got = received(seen, share_of(self.local, seen.tokens))
        marks = got.total.mean(2) * seen.tokens
        shares = []
        fixed, near = torch.zeros_like(kinds, dtype=torch.bool), False
        for part in self.order:
            if part == "local":
                near = True
            else:
                fixed = fixed | members(part, kinds, marks, seen.positions, seen.tokens, self.frequent)
            mass = torch.where(fixed[:, :, None], got.total, got.near if near else 0.0).sum(-1)  # per query head
            shares.append(mass.mean(-1) if self.group == "mean" else mass.amin(-1))
        recovered = torch.stack(shares, -1)  # (batch, kv_heads, sets)
        unions = self.unions(kinds, marks, seen.positions, seen.tokens)
        skipped = self.first - 1
        recovered = recovered[..., skipped:]
        if self.recovery is not None:
            policies = sufficient(recovered, self.recovery) + skipped
        else:
            total = seen.tokens + new_tokens
            kept = torch.stack(unions, -1).sum(2)  # (batch, kv_heads, sets + 1)
            free = min(max(self.every or 0, blocked(seen.tokens)), new_tokens)
            grown = (kept * total / seen.tokens).ceil().long() + free
            slots = grown.clamp(max=total)[..., skipped:]
            policies = affordable(recovered, slots, self.size(total) * kinds.shape[1]) + skipped
        return policies, chosen(unions, policies), marks

    def unions(self, kinds: Tensor, marks: Tensor, positions: Tensor, tokens: int) -> list[Tensor]:
        """What the growing sets of the chain cover of the held tokens, and at last everything: see `members`."""
        made: list[Tensor] = []
        for part in self.order:
            share = self.local if part == "local" else self.frequent
            own = members(part, kinds, marks, positions, tokens, share)
            made.append(own | made[-1] if made else own)
        return [*made, torch.ones_like(made[0])]
