from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from enumerated import KINDS, Stops, Table, along, chain, draft, drafts, fit, off, once_each, one_by_one, tables, texts
from hypothesis import given, settings
from torch import Tensor

from techniques.decoding.core.acceptance import token_wise
from techniques.decoding.core.block import BlockAcceptance, block_wise, draw_block

G = 3
Rule = Callable[[Tensor, Tensor, Tensor], BlockAcceptance]


def stops(rule: Rule) -> Stops:
    """How `draw_block` goes on from what the rule says: the longest that is granted, each asked for on its own."""

    def every(p: Tensor, q: Tensor, drafted: Tensor) -> list[tuple[float, list[float]]]:
        keep, residual = rule(p, q, drafted)
        refused, found = 1.0, []
        for one, law in zip(reversed([1.0, *keep.tolist()]), reversed(residual.tolist()), strict=True):
            found.append((refused * one, law))
            refused *= 1 - one
        return found[::-1]

    return every


def residual_of_one_token(p: Tensor, q: Tensor, drafted: Tensor) -> BlockAcceptance:
    return block_wise(p, q, drafted)._replace(residual=token_wise(p, q, drafted).residual)


def bonus_from_one_place_before(p: Tensor, q: Tensor, drafted: Tensor) -> BlockAcceptance:
    right = block_wise(p, q, drafted)
    return right._replace(residual=torch.cat([right.residual[:-1], p[-2:-1]]))


def residual_not_normalised(p: Tensor, q: Tensor, drafted: Tensor) -> BlockAcceptance:
    """Drawn through its running sum: what is missing to 1 falls on the last id."""
    right = block_wise(p, q, drafted)
    residual = torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]])
    residual[:, -1] += 1 - residual.sum(-1)
    return right._replace(residual=residual)


def granted_as_one_by_one(p: Tensor, q: Tensor, drafted: Tensor) -> BlockAcceptance:
    return block_wise(p, q, drafted)._replace(keep=token_wise(p, q, drafted).accept)


MISTAKES = [bonus_from_one_place_before, residual_not_normalised, granted_as_one_by_one]


@pytest.mark.parametrize("g", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_emitted_law_is_the_targets(kind: str, seed: int, g: int) -> None:
    p, q = tables(kind, seed, g, size=3 + seed % 2)
    law, _ = chain(p, q, g, stops(block_wise))
    assert off(law, p, g + 1) < 1e-12


def test_in_float32_the_law_is_off_by_its_rounding_only() -> None:
    for seed in range(3):
        p, q = tables("mixed", seed)
        law, _ = chain(p, q, G, stops(lambda p, q, drafted: block_wise(p.float(), q.float(), drafted)))
        assert off(law, p, G + 1) < 1e-6


def emit(rule: Rule, p: Table, q: Table) -> Callable[[torch.Generator], Tensor]:
    rule = once_each(rule)

    def once(generator: torch.Generator) -> Tensor:
        ids = draft(q, 2, generator)
        return draw_block(rule(along(p, ids), along(q, ids)[:-1], ids), ids, generator)[0]

    return once


@pytest.mark.parametrize("mistake", [*MISTAKES, residual_of_one_token])
def test_mistakes_change_the_law(mistake: Rule) -> None:
    p, q = tables("any", 0)
    law, _ = chain(p, q, 2, stops(mistake))
    assert off(law, p, 3) > 1e-3


@pytest.mark.parametrize("mistake", MISTAKES)
def test_texts_drawn_with_a_mistake_do_not_follow_it(mistake: Rule) -> None:
    p, q = tables("any", 0)
    assert fit(*texts(p, 3, 2000, emit(mistake, p, q))) < 1e-6


def test_texts_drawn_follow_the_target() -> None:
    p, q = tables("any", 0)
    assert fit(*texts(p, 3, 2000, emit(block_wise, p, q))) > 0.01


def test_draw_follows_the_probabilities() -> None:
    p, q = tables("any", 23)
    ids = torch.tensor([0, 0, 1])  # none of the three certain to be granted, or refused
    result = block_wise(along(p, ids), along(q, ids)[:-1], ids)
    expected = {
        (kept, token): stop * share
        for kept, (stop, residual) in enumerate(stops(lambda *_: result)(result.residual, result.residual, ids))
        for token, share in enumerate(residual)
    }
    generator, drawn = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        tokens, kept = draw_block(result, ids, generator)
        assert tokens[:-1].tolist() == ids[:kept].tolist()
        drawn[kept, int(tokens[-1])] += 1
    assert fit(drawn, expected) > 0.01


def test_the_papers_example() -> None:
    """Sun et al. 2025, section 2: 10/9 tokens accepted of two one by one, 11/9 as a block."""
    a, b = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64) / 3
    some = list(tables("any", 0, 2, size=2)[0])
    p, q = dict.fromkeys(some, a), dict.fromkeys(some, b)
    assert chain(p, q, 2, one_by_one(token_wise))[1] == pytest.approx(10 / 9, abs=1e-12)
    assert chain(p, q, 2, stops(block_wise))[1] == pytest.approx(11 / 9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_never_fewer_tokens_than_one_by_one(kind: str) -> None:
    more = 0
    for seed in range(4):
        p, q = tables(kind, seed)
        single, block = chain(p, q, G, one_by_one(token_wise))[1], chain(p, q, G, stops(block_wise))[1]
        assert block >= single - 1e-12
        more += block > single + 1e-3
    assert more or kind not in {"any", "mixed"}


def test_at_least_i_tokens_stay_with_b_i() -> None:
    p, q = tables("any", 3)
    expected = 0.0
    for g in range(1, G + 1):
        for ids in itertools.product(range(3), repeat=g):
            b = chance = 1.0
            for place in range(g):
                one = float(q[ids[:place]][ids[place]])
                b, chance = min(1.0, b * float(p[ids[:place]][ids[place]]) / one), chance * one
            expected += chance * b
    assert chain(p, q, G, stops(block_wise))[1] == pytest.approx(expected, abs=1e-12)


def test_small_differences_are_not_rounded_away() -> None:
    """Where b is 1 and the laws differ by 1e-6, the tokens so far must be granted for certain."""
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])
    q = torch.tensor([[0.5, 0.5], [0.250001, 0.749999]])
    assert block_wise(p, q, torch.tensor([0, 1])).keep[0] == 1


def test_one_token_is_the_token_wise_rule() -> None:
    p, q = tables("any", 6)
    for token in range(3):
        ids = torch.tensor([token])
        block, single = (rule(along(p, ids), along(q, ids)[:-1], ids) for rule in (block_wise, token_wise))
        assert torch.allclose(block.keep, single.accept, atol=1e-15)
        assert torch.allclose(block.residual, single.residual, atol=1e-15)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(drafts())
def test_results_are_probabilities_of_the_targets_ids(case: tuple[Tensor, Tensor, Tensor]) -> None:
    p, q, ids = case
    keep, residual = block_wise(p, q, ids)
    assert keep.dtype == residual.dtype == p.dtype
    assert bool(((keep >= 0) & (keep <= 1)).all())
    assert bool((residual >= 0).all())
    assert (residual.sum(-1) - 1).abs().max() < 1e-5
    assert not residual[p == 0].any()
