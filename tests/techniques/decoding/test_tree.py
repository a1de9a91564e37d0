"""The order in which a tree of drafts is read, and how it grows."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
from sampled import Near, law_of, z_of
from transformers import DynamicCache

from bench.families.decoding import Batch, DecodingJob, DecodingPrepared, Emitted
from bench.models import Source, Sources
from techniques.decoding.autoregressive import Autoregressive
from techniques.decoding.core.tree import ROOT, Drafts
from techniques.decoding.tree import Tree


def test_the_path_of_first_children_comes_first() -> None:
    #  0 -> (2 -> 5, 3), 1 -> 4
    parents = [ROOT, ROOT, 0, 0, 1, 2]
    tree = Drafts([torch.tensor([node]) for node in range(6)], parents)
    order = tree.depth_first()
    assert order == [0, 2, 5, 3, 1, 4]
    assert all(parents[node] == ROOT or order.index(parents[node]) < order.index(node) for node in order)
    assert Drafts().depth_first() == []


def test_the_tree_is_deep_only_where_the_draft_is_sure() -> None:
    """The law is nearly flat over 256 ids: the threshold lies amid the first children's probabilities."""
    these = Sources(Source("tiny:llama"), {"draft": Source("tiny:llama", "draft")})
    job = DecodingJob(prompts=(torch.arange(40, 60),), max_new_tokens=41)

    def rounds(one: Autoregressive | Tree) -> tuple[list[list[int]], dict[str, int]]:
        prepared = one.prepare(these)
        outputs, counts = one.generate(prepared, job)
        prepared.close()
        return outputs, counts[0]

    expected, _ = rounds(Autoregressive())
    depths = []
    for confidence in (0.0, 0.0045, 0.9):
        outputs, counts = rounds(Tree(branches=(2, 1, 1), confidence=confidence))
        assert outputs == expected
        assert counts["accepted"] == counts["drafted"], "the draft is the target itself"
        depths.append(counts["drafted"] / counts["rounds"])
    assert depths[0] > 2.8
    assert 1.0 < depths[1] < depths[0]
    assert depths[2] == 1.0


def test_a_tree_of_several_levels_keeps_the_targets_law() -> None:
    """Of two likeliest ids each: a path of one level has a probability of about a half, one of two about a quarter."""
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.9, "top_k": 2}
    prompt, draws = torch.tensor([7, 7, 7, 7, 9, 7, 7, 7]), 600
    these = Sources(Source("tiny:llama"), {"draft": Near("tiny:llama", "draft")})
    expected = law_of("tiny:llama", prompt, options)
    assert len(expected) == 32
    depths = []
    for confidence in (0.0, 0.45):
        one = Tree(branches=(2, 1, 1), confidence=confidence)
        prepared = one.prepare(these)
        outputs, counts = one.generate(prepared, DecodingJob(prompts=(prompt,) * draws, **options))
        prepared.close()
        assert set(map(tuple, outputs)) <= set(expected)
        assert sum(count.get("accepted_2", 0) for count in counts) > draws / 20, "no second level was ever reached"
        depths.append(sum(count["drafted"] for count in counts) / sum(count["rounds"] for count in counts))
        assert z_of(Counter(map(tuple, outputs)), expected, draws) < 3.3
    assert 1.0 < depths[1] < depths[0]


class Watched(Tree):
    """Looks at what every node's children are drawn from, and at the draft's cache behind every round."""

    seen: ClassVar[dict[str, Any]] = {}

    def grown(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Drafts:
        tree = super().grown(prepared, batch, job)
        text = batch.only.known
        for node, law in tree.laws.items():
            path, above = list[torch.Tensor](), tree.parents[node] if node != ROOT else ROOT
            while node != ROOT:
                path, node = [tree.tokens[node], *path], tree.parents[node]
            assert torch.allclose(law, job.distribution(fresh(batch, torch.cat([text, *path]))[1])[0], atol=1e-5)
            self.seen["deep"] += above != ROOT and tree.read.index(above) != above
        self.seen["tree"] = tree
        return tree

    def round(self, prepared: DecodingPrepared, batch: Batch, job: DecodingJob) -> Emitted:
        text = batch.only.known
        emitted, counts = super().round(prepared, batch, job)
        cache, tree = batch.draft.cache, self.seen["tree"]
        known = torch.cat([text, emitted[0]])[: cache.layers[0].lengths[0]]
        for layer, expected in zip(cache.layers, fresh(batch, known)[0].layers, strict=True):
            for held, wanted in ((layer.keys, expected.keys), (layer.values, expected.values)):
                assert torch.allclose(held[:, :, : len(known)], wanted, atol=1e-5)
        # a node is kept that the draft read sooner than it was drafted: some before it were not continued
        path, alive = list[int](), ROOT
        for token in emitted[0]:
            children = [child for child in tree.children([alive]) if tree.tokens[child] == token]
            path += children
            alive = children[0] if children else len(tree.tokens)
        kept = [node for node in path if node in tree.read]
        assert len(known) == len(text) + len(kept), "what the draft has read of the path is kept, and no more"
        self.seen["uneven"] += any(tree.read.index(node) != node for node in kept)
        return emitted, counts


def fresh(batch: Batch, ids: torch.Tensor) -> tuple[DynamicCache, torch.Tensor]:
    """The draft's cache behind these ids alone, and the logits of what follows, `(1, vocabulary)`."""
    cache = DynamicCache()
    logits = batch.draft.model(input_ids=ids[None], past_key_values=cache, logits_to_keep=1).logits
    return cache, logits[0]


def test_behind_every_round_the_drafts_cache_is_a_fresh_reading_of_the_text() -> None:
    """A wrong place kept would cost acceptance alone, and never the law."""
    these = Sources(Source("tiny:llama"), {"draft": Near("tiny:llama", "draft")})
    prompts = tuple(torch.arange(start, start + 9) for start in range(0, 200, 10))
    Watched.seen.update(uneven=0, deep=0)
    one = Watched(branches=(2, 2, 1), confidence=0.35)
    prepared = one.prepare(these)
    one.generate(prepared, DecodingJob(prompts=prompts, max_new_tokens=16, temperature=0.3, top_k=2))
    prepared.close()
    assert Watched.seen["uneven"] >= 5, "a node whose place is its number shows nothing"
    assert Watched.seen["deep"] >= 5, "so does a parent whose place is its number"
