"""The order in which a tree of drafts is read, and how it grows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from sampled import Near, law_of, z_of

from bench.families.decoding import DecodingJob
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
