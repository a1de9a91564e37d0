"""Every way a verified draft can go, and what it emits: exact laws over a few ids, and draws to hold against them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

Context = tuple[int, ...]
Table = dict[Context, Tensor]
"""Context -> the distribution of the next id, `(V,)`."""
Law = Mapping[Context, float]
"""Ids emitted -> probability."""
Stops = Callable[[Tensor, Tensor, Tensor], list[tuple[float, list[float]]]]
"""p `(g + 1, V)`, q `(g, V)`, drafted `(g,)` -> per count of ids that stay, how probable, and the next id's law."""
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""p `(V,)`, q `(V,)`, candidates `(k,)` -> acceptance of each, `(k,)`, and the residual, `(V,)`."""

V = 3
KINDS = ["any", "zeros", "equal", "disjoint", "certain target", "certain draft", "mixed"]


def tables(kind: str, seed: int, depth: int = 3, size: int = V) -> tuple[Table, Table]:
    """p and q of every context of up to `depth` ids."""
    generator = torch.Generator().manual_seed(seed)
    p, q = {}, {}
    for context in contexts(depth, size):
        chosen = int(torch.randint(len(KINDS) - 1, (), generator=generator))
        p[context], q[context] = _pair(KINDS[chosen] if kind == "mixed" else kind, generator, size)
    return p, q


def contexts(depth: int, size: int = V) -> Iterator[Context]:
    for length in range(depth + 1):
        yield from itertools.product(range(size), repeat=length)


def _pair(kind: str, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    p, q = torch.randn(2, size, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    order = torch.randperm(size, generator=generator)
    if kind == "zeros":
        p, q = p.index_fill(0, order[:1], 0), q.index_fill(0, order[1:2], 0)
    elif kind == "equal":
        q = p
    elif kind == "disjoint":
        p, q = p.index_fill(0, order[:1], 0), q.index_fill(0, order[1:], 0)
    elif kind == "certain target":
        p = p.index_fill(0, order[1:], 0)
    elif kind == "certain draft":
        q = q.index_fill(0, order[1:], 0)
    return p / p.sum(), q / q.sum()


def completed(emitted: Law, p: Table, length: int) -> Tensor:
    """The law of the first ids, `(V,) * length`: what was emitted, and the rest drawn from p."""
    size = len(p[()])
    total = torch.zeros((size,) * length, dtype=torch.float64)
    for ids, weight in emitted.items():
        rest = torch.tensor(weight, dtype=torch.float64)
        for more in range(length - len(ids)):
            rows = [p[ids + tail] for tail in itertools.product(range(size), repeat=more)]
            rest = rest[..., None] * torch.stack(rows).view(*rest.shape, size)
        total[ids] += rest
    return total


def off(emitted: Law, p: Table, length: int) -> float:
    """How far the emitted law, completed, is from the target's at most."""
    return float((completed(emitted, p, length) - completed({(): 1.0}, p, length)).abs().max())


def chain(p: Table, q: Table, g: int, stops: Stops, drafted_from: Table | None = None) -> tuple[Law, float]:
    """The law of what one verified chain emits, and how many drafted ids stay in the mean.

    Args:
        drafted_from: what really was drafted from, if not the q that the rule is told.
    """
    law, mean = Counter[Context](), 0.0
    for drafted in itertools.product(range(len(p[()])), repeat=g):
        before = [drafted[:place] for place in range(g + 1)]
        chance = 1.0
        for context, token in zip(before, drafted, strict=False):
            chance *= float((drafted_from or q)[context][token])
        if not chance:
            continue
        outcome = stops(
            torch.stack([p[context] for context in before]),
            torch.stack([q[context] for context in before[:-1]]),
            torch.tensor(drafted),
        )
        for kept, (stop, residual) in enumerate(outcome):
            mean += chance * stop * kept
            for token, share in enumerate(residual):
                law[(*drafted[:kept], token)] += chance * stop * share
    return law, mean


def one_by_one(rule: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Stops:
    """What the token-wise rule's acceptance amounts to: accepted from the left until the first rejection."""

    def every(p: Tensor, q: Tensor, drafted: Tensor) -> list[tuple[float, list[float]]]:
        accept, residual = rule(p, q, drafted)
        stay, found = 1.0, []
        for one, law in zip([*accept.tolist(), 0.0], residual.tolist(), strict=True):
            found.append((stay * (1 - one), law))
            stay *= one
        return found

    return every


Walk = Iterator[tuple[int | None, float, list[float]]]


def tried(rule: Rule, p: Tensor, q: Tensor, candidates: Context) -> Walk:
    """Candidates in order until one is accepted: its place and probability; None with the residual behind the last."""
    accept, residual = rule(p, q, torch.tensor(candidates))
    rejected = 1.0
    for place, one in enumerate(accept.tolist()):
        yield place, rejected * one, []
        rejected *= 1 - one
    yield None, rejected, residual.tolist()


def chains(p: Table, q: Table, g: int, k: int, rule: Rule) -> tuple[Law, float]:
    """The same of k independent chains: at every place the rule tries those that agree with what was accepted."""
    size, law, mean = len(p[()]), Counter[Context](), 0.0
    seen: dict[Hashable, list[tuple[int | None, float, list[float]]]] = {}
    single = {}
    for ids in itertools.product(range(size), repeat=g):
        single[ids] = float(torch.stack([q[ids[:place]][ids[place]] for place in range(g)]).prod())
    for drafts in itertools.product([ids for ids, chance in single.items() if chance], repeat=k):
        chance = 1.0
        for ids in drafts:
            chance *= single[ids]
        pending = [((), drafts, chance)]
        while pending:
            path, alive, weight = pending.pop()
            if len(path) == g:
                for token, share in enumerate(p[path].tolist()):
                    law[(*path, token)] += weight * share
                mean += weight * g
                continue
            candidates = tuple(ids[len(path)] for ids in alive)
            if (path, candidates) not in seen:
                seen[path, candidates] = list(tried(rule, p[path], q[path], candidates))
            for place, probability, residual in seen[path, candidates]:
                for token, share in enumerate(residual):
                    law[(*path, token)] += weight * probability * share
                if place is None:
                    mean += weight * probability * len(path)
                elif probability:
                    still = tuple(ids for ids in alive if ids[len(path)] == candidates[place])
                    pending.append(((*path, candidates[place]), still, weight * probability))
    return law, mean


def tree(p: Table, q: Table, branches: tuple[int, ...], rule: Rule) -> tuple[Law, float]:
    """The same of a tree whose nodes' children are drawn in order without replacement, fewer where q has fewer ids."""
    law, mean = Counter[Context](), 0.0
    pending = [((), 1.0)]
    while pending:
        path, weight = pending.pop()
        if len(path) == len(branches):
            for token, share in enumerate(p[path].tolist()):
                law[(*path, token)] += weight * share
            mean += weight * len(path)
            continue
        for children, chance in ordered(q[path], branches[len(path)]):
            for place, probability, residual in tried(rule, p[path], q[path], children):
                for token, share in enumerate(residual):
                    law[(*path, token)] += weight * chance * probability * share
                if place is None:
                    mean += weight * chance * probability * len(path)
                elif probability:
                    pending.append(((*path, children[place]), weight * chance * probability))
    return law, mean


def ordered(q: Tensor, count: int) -> Iterator[tuple[Context, float]]:
    """Children drawn one after the other without replacement, and how probable they are in this order."""
    law = q.tolist()
    held = [token for token, one in enumerate(law) if one]
    for children in itertools.permutations(held, min(count, len(held))):
        chance = 1.0
        for place, child in enumerate(children):
            chance *= law[child] / sum(law[token] for token in held if token not in children[:place])
        yield children, chance


def position(rule: Rule, p: Tensor, q: Tensor, k: int) -> float:
    """How probable it is that one of k independent candidates for one position is accepted."""
    total = 0.0
    for candidates in itertools.product(range(len(p)), repeat=k):
        chance = float(q[list(candidates)].prod())
        if chance:
            total += chance * sum(one for place, one, _ in tried(rule, p, q, candidates) if place is not None)
    return total


def fit(drawn: Counter[Hashable], expected: Mapping[Hashable, float]) -> float:
    """p-value of a chi-square test; cells expected fewer than five times are one. What cannot happen, must not."""
    draws = drawn.total()
    if any(not expected.get(cell) for cell in drawn):
        return 0.0
    cells = {cell: share * draws for cell, share in expected.items() if share}
    rare = [cell for cell, count in cells.items() if count < 5]
    counts = [(drawn[cell], count) for cell, count in cells.items() if count >= 5]
    if rare:
        counts.append((sum(drawn[cell] for cell in rare), sum(cells[cell] for cell in rare)))
    seen, hoped = zip(*counts, strict=True)
    scale = draws / sum(hoped)  # shares add up to one but for rounding
    return float(stats.chisquare(seen, [count * scale for count in hoped]).pvalue)


def texts(
    p: Table, length: int, draws: int, emit: Callable[[torch.Generator], Tensor], seed: int = 0
) -> tuple[Counter[Hashable], dict[Hashable, float]]:
    """Texts of `length` ids, whose beginning is emitted and whose rest is drawn from p; and the target's law."""
    generator = torch.Generator().manual_seed(seed)
    drawn = Counter[Hashable]()
    for _ in range(draws):
        ids = tuple(emit(generator).tolist())
        while len(ids) < length:
            ids += (int(torch.multinomial(p[ids], 1, generator=generator)),)
        drawn[ids[:length]] += 1
    law = completed({(): 1.0}, p, length)
    size = len(p[()])
    return drawn, {ids: float(law[ids]) for ids in itertools.product(range(size), repeat=length)}


def draft(q: Table, g: int, generator: torch.Generator) -> Tensor:
    """A chain of g ids drawn from q."""
    ids: Context = ()
    for _ in range(g):
        ids += (int(torch.multinomial(q[ids], 1, generator=generator)),)
    return torch.tensor(ids)


def once_each(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that is asked once for every draft: it has no memory and no chance in it."""
    answers: dict[Context, Any] = {}

    def ask(p: Tensor, q: Tensor, ids: Tensor) -> Any:
        key = tuple(ids.tolist())
        if key not in answers:
            answers[key] = rule(p, q, ids)
        return answers[key]

    return ask


def along(p: Table, ids: Tensor) -> Tensor:
    """The laws before and behind each of the ids, `(g + 1, V)`."""
    path = tuple(ids.tolist())
    return torch.stack([p[path[:place]] for place in range(len(path) + 1)])


@st.composite
def drafts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """p, q and ids that q can have drawn, among them zeros, single ids, and chances from 1e-9 to 1."""
    size, g = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    chance = st.one_of(st.just(0.0), st.floats(-20, 0).map(lambda power: 2.0 ** (1.5 * power)))
    row = st.lists(chance, min_size=size, max_size=size).filter(any)
    p = torch.tensor(draw(st.lists(row, min_size=g + 1, max_size=g + 1)), dtype=dtype)
    q = torch.tensor(draw(st.lists(row, min_size=g, max_size=g)), dtype=dtype)
    ids = [draw(st.sampled_from(one.nonzero()[:, 0].tolist())) for one in q]
    return p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True), torch.tensor(ids)
