from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from enumerated import KINDS, Rule, Table, drafts, fit, off, once_each, ordered, position, tables, texts, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from techniques.decoding.core.kseq import SequentialAcceptance, draw_sequential, kseq
from techniques.decoding.core.recursive import without_replacement
from techniques.decoding.tree import distinct


def rejected_child_stays_in_q(p: Tensor, q: Tensor, children: Tensor) -> SequentialAcceptance:
    accept = []
    for child in children:
        accept.append((p[child] / q[child]).clamp_max(1))
        left = (p - q).clamp_min(0)
        p = left / left.sum() if left.any() else p
    return SequentialAcceptance(torch.stack(accept), p)


def only_the_child_is_taken_out_of_p(p: Tensor, q: Tensor, children: Tensor) -> SequentialAcceptance:
    accept = []
    for child in children:
        accept.append((p[child] / q[child]).clamp_max(1))
        p, q = (law.scatter(-1, child[None], 0.0) for law in (p, q))
        p, q = p / p.sum(), q / q.sum()
    return SequentialAcceptance(torch.stack(accept), p)


def residual_not_normalised(p: Tensor, q: Tensor, children: Tensor) -> SequentialAcceptance:
    """Drawn through its running sum: what is missing to 1 falls on the last id."""
    residual = (p - q).clamp_min(0)
    residual[-1] += 1 - residual.sum()
    return without_replacement(p, q, children)._replace(residual=residual)


MISTAKES = [rejected_child_stays_in_q, only_the_child_is_taken_out_of_p, residual_not_normalised]


@pytest.mark.parametrize("branches", [(1, 1, 1), (2, 2), (3, 2), (2, 1, 2), (4,)])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_emitted_law_is_the_targets(kind: str, seed: int, branches: tuple[int, ...]) -> None:
    p, q = tables(kind, seed, len(branches), size=4)
    law, _ = tree(p, q, branches, without_replacement)
    assert off(law, p, len(branches) + 1) < 1e-12


def test_in_float32_the_law_is_off_by_its_rounding_only() -> None:
    for seed in range(3):
        p, q = tables("mixed", seed)
        law, _ = tree(p, q, (2, 2), lambda p, q, ids: without_replacement(p.float(), q.float(), ids))
        assert off(law, p, 3) < 1e-6


def emit(rule: Rule, p: Table, q: Table) -> Callable[[torch.Generator], Tensor]:
    """One position with two children."""
    rule = once_each(rule)

    def once(generator: torch.Generator) -> Tensor:
        ids = distinct(q[()], 2, generator)
        return draw_sequential(SequentialAcceptance(*rule(p[()], q[()], ids)), ids, generator)[0]

    return once


def test_texts_drawn_follow_the_target() -> None:
    p, q = tables("any", 2, size=4)
    assert fit(*texts(p, 1, 2000, emit(without_replacement, p, q))) > 0.01


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: Rule) -> None:
    p, q = tables("any", 2, size=4)
    law, _ = tree(p, q, (2, 2), mistake)
    assert off(law, p, 3) > 1e-3
    assert fit(*texts(p, 1, 2000, emit(mistake, p, q))) < 1e-6


def test_children_are_drawn_in_the_order_the_rule_supposes() -> None:
    q = tables("any", 2, size=4)[1][()]
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(distinct(q, 3, generator).tolist()) for _ in range(2000)]
    assert fit(Counter(drawn), dict(ordered(q, 3))) > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_children_that_cover_the_vocabulary_hold_the_token(seed: int) -> None:
    p, q = tables("any", seed, 1, size=4)
    assert tree(p, q, (4,), without_replacement)[1] == pytest.approx(1, abs=1e-12)
    assert position(kseq, p[()], q[()], 4) < 1 - 1e-3


def test_two_children_cover_two_tokens() -> None:
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    assert tree({(): p, (0,): p, (1,): p}, {(): q}, (2,), without_replacement)[1] == pytest.approx(1, abs=1e-12)


def test_more_children_never_accept_less() -> None:
    for kind in KINDS:
        for seed in range(3):
            p, q = tables(kind, seed, 1, size=4)
            means = [tree(p, q, (children,), without_replacement)[1] for children in range(1, 5)]
            assert means[0] == pytest.approx(float(torch.minimum(p[()], q[()]).sum()), abs=1e-12)
            assert all(more >= less - 1e-12 for less, more in itertools.pairwise(means))


def test_children_behind_the_end_of_q_are_not_accepted() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    accept, residual = without_replacement(p, q, torch.tensor([0, 1, 2]))
    assert accept.tolist() == [0.5, 0, 0]
    assert residual.tolist() == pytest.approx([0, 0.6, 0.4])


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(drafts(), st.integers(1, 5), st.integers(0, 99))
def test_results_are_probabilities_of_the_targets_ids(
    case: tuple[Tensor, Tensor, Tensor], children: int, seed: int
) -> None:
    p, q = case[0][0], case[1][0]
    ids = distinct(q, children, torch.Generator().manual_seed(seed))
    accept, residual = without_replacement(p, q, ids)
    assert accept.dtype == residual.dtype == p.dtype
    assert len(accept) == len(ids)
    assert bool(((accept >= 0) & (accept <= 1)).all())
    assert bool((residual >= 0).all())
    assert abs(float(residual.sum()) - 1) < 1e-5
    assert not residual[p == 0].any()


def test_a_large_vocabulary_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    likes = 3 * torch.randn(49152, generator=generator, dtype=torch.float64)
    p, q = likes.softmax(-1), (likes + torch.randn(49152, generator=generator)).softmax(-1)
    ids = distinct(q, 4, generator)
    exact, rounded = without_replacement(p, q, ids), without_replacement(p.float(), q.float(), ids)
    assert torch.allclose(rounded.accept.double(), exact.accept, atol=1e-5)
    assert (rounded.residual.double() - exact.residual).abs().sum() < 1e-4
