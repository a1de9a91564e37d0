"""A tree of drafts: grown by the draft model, read by the target in one pass, walked from the root."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.families.decoding import Batch, DecodingJob, DecodingPrepared, Emitted, best_of
from bench.families.ragged import keep, lengths, read_rows, read_tree
from techniques.decoding.core.chain import count
from techniques.decoding.core.drafted import Drafted

Draw = Callable[[Tensor, int, torch.Generator], Tensor]
"""A distribution `(vocabulary,)`, or logits where greedy, a number of children, the row's random numbers -> their ids,
`(children,)`."""
Decide = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, bool]]
"""Distributions of target and draft `(vocabulary,)`, the children `(m,)` -> the next id `(1,)`, and whether it is
one of them."""

ROOT = -1


@dataclass
class Drafts:
    """Drafted tokens behind one row's text."""

    tokens: list[Tensor] = field(default_factory=list)
    """Ids of the nodes, `(1,)` each."""
    parents: list[int] = field(default_factory=list)
    """Per node, the place of its parent, or ROOT."""
    laws: dict[int, Tensor] = field(default_factory=dict)
    """Node -> what its children were drawn from, `(vocabulary,)`; greedily the draft's logits."""
    read: list[int] = field(default_factory=list)
    """The nodes that the draft model has read, in that order."""

    depth: int = 0
    """Levels."""

    def children(self, nodes: Sequence[int]) -> list[int]:
        return [child for child, parent in enumerate(self.parents) if parent in nodes]

    def depth_first(self) -> list[int]:
        """All nodes, first children first: greedily that is the likeliest path, which then needs no moving."""
        order, waiting = list[int](), self.children([ROOT])
        while waiting:
            node, *waiting = waiting
            order.append(node)
            waiting = self.children([node]) + waiting
        return order


def grow(
    prepared: DecodingPrepared,
    batch: Batch,
    job: DecodingJob,
    widths: Sequence[int],
    draw: Draw,
    confidence: float = 0.0,
) -> Drafts:
    """Draft level by level, as deep as the row has room beside one token of the target's.

    Args:
        widths: children of every node, per level.
        confidence: the probability of a path under the draft from which it is continued.
    """
    model, cache, width = batch.draft.model, batch.draft.cache, prepared.model.config.vocab_size
    row, tree = batch.only, Drafts()
    (held,) = lengths(cache, 1)
    held = min(held, row.length - 1)
    keep(cache, [held])
    nodes, likelihood, logits = [ROOT], {ROOT: 1.0}, read_rows(model, [row.known[held:]], cache)[0]
    for children in widths[: max(row.room - 1, 0)]:
        if tree.depth:
            tree.read += nodes
            parents = [tree.read.index(tree.parents[n]) if tree.parents[n] != ROOT else ROOT for n in tree.read]
            logits = read_tree(model, torch.cat([tree.tokens[node] for node in nodes]), parents, cache, row.length)
        new = []
        for node, one in zip(nodes, logits[:, :width], strict=True):
            law, never = (job.distribution(one), 0.0) if job.temperature else (one, -torch.inf)
            tree.laws[node] = torch.nn.functional.pad(law, (0, width - len(law)), value=never)
            drawn = draw(tree.laws[node], children, row.generator)
            if confidence:
                chances = tree.laws[node] if job.temperature else tree.laws[node].float().softmax(-1)
                likelihood |= enumerate((likelihood[node] * chances[drawn]).tolist(), len(tree.tokens))
            new += range(len(tree.tokens), len(tree.tokens) + len(drawn))
            tree.tokens += drawn.split(1)
            tree.parents += [node] * len(drawn)
        tree.depth += 1
        nodes = [node for node in new if not confidence or likelihood[node] >= confidence]
        if not nodes:
            break
    return tree


def read(prepared: DecodingPrepared, batch: Batch, tree: Drafts) -> tuple[Tensor, dict[int, int]]:
    """Let the target read the text's last token and, behind it, all nodes.

    Returns:
        Logits `(1 + nodes, vocabulary)`, and per node, ROOT among them, its place in them and behind the text.
    """
    row, order = batch.only, tree.depth_first()
    places = {node: place for place, node in enumerate([ROOT, *order])}
    ids = torch.cat([row.last, *(tree.tokens[node] for node in order)])
    parents = [ROOT, *(places[tree.parents[node]] for node in order)]
    return read_tree(prepared.model, ids, parents, batch.cache, row.length - 1), places


def verify(prepared: DecodingPrepared, batch: Batch, job: DecodingJob, tree: Drafts, decide: Decide) -> Emitted:
    """Let the target read the tree in one pass, and walk down while it accepts."""
    row, text = batch.only, batch.only.length
    with job.phase("verify"):
        logits, places = read(prepared, batch, tree)
    with job.phase("sample"):
        alive, path, emitted = [ROOT], list[int](), list[Tensor]()
        while alive:
            children = tree.children(alive)
            tokens = torch.cat([row.ids[:0], *(tree.tokens[child] for child in children)])
            one = logits[places[alive[0]]]
            if job.temperature == 0:
                token = best_of(one)[None]
                accepted = bool((tokens == token).any())
            elif children:
                token, accepted = decide(job.distribution(one), tree.laws[alive[0]], tokens, row.generator)
            else:
                token, accepted = job.choose(one[None], row.generator), False
            emitted.append(token)
            alive = [child for child in children if accepted and bool(tree.tokens[child] == token)]
            path += alive[:1]
    with job.phase("cache"):
        keep(batch.cache, [text - 1], [[0, *(places[node] for node in path)]])
        keep(batch.draft.cache, [text], [[tree.read.index(node) for node in path if node in tree.read]])
    return [torch.cat(emitted)], {**count(tree.depth, len(path)), "nodes": len(tree.tokens)}


def likeliest(law: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy children: the draft's first choices."""
    return law.topk(count).indices


class TreeDecoding(Drafted):
    """Base of the techniques that verify a tree."""

    @abstractmethod
    def grown(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Drafts:
        """Draft behind the text of the only row."""

    @abstractmethod
    def decide(self, p: Tensor, q: Tensor, candidates: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
        """Which of a node's children is accepted, or what stands in their place: see `Decide`."""

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        with job.phase("draft"):
            grown = self.grown(prepared, batch, job)
        return verify(prepared, batch, job, grown, self.decide)

    def pieces(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Mapping[str, Callable[[], object]]:
        grown = self.grown(prepared, batch, job)
        return {
            "draft": lambda: self.grown(prepared, batch, job),
            "verify": lambda: read(prepared, batch, grown),
        }
