from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from enumerated import KINDS, Rule, Table, chains, drafts, fit, off, once_each, position, tables, texts, tried
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from techniques.decoding.core.acceptance import token_wise
from techniques.decoding.core.kseq import SequentialAcceptance, draw_sequential, factor, kseq


def residual_of_one_candidate(p: Tensor, q: Tensor, candidates: Tensor) -> SequentialAcceptance:
    left = (p - q).clamp_min(0)
    return kseq(p, q, candidates)._replace(residual=left / left.sum())


def residual_not_normalised(p: Tensor, q: Tensor, candidates: Tensor) -> SequentialAcceptance:
    """Drawn through its running sum: what is missing to 1 falls on the last id."""
    residual = (p - q).clamp_min(0)
    residual[-1] += 1 - residual.sum()
    return kseq(p, q, candidates)._replace(residual=residual)


def accepted_as_if_alone(p: Tensor, q: Tensor, candidates: Tensor) -> SequentialAcceptance:
    return kseq(p, q, candidates)._replace(accept=(p / q)[candidates].clamp_max(1))


MISTAKES = [residual_of_one_candidate, residual_not_normalised, accepted_as_if_alone]


@pytest.mark.parametrize(("k", "g"), [(1, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_emitted_law_is_the_targets(kind: str, seed: int, k: int, g: int) -> None:
    p, q = tables(kind, seed, g)
    law, _ = chains(p, q, g, k, kseq)
    assert off(law, p, g + 1) < 1e-12


def test_in_float32_the_law_is_off_by_its_rounding_only() -> None:
    for seed in range(3):
        p, q = tables("mixed", seed)
        law, _ = chains(p, q, 2, 2, lambda p, q, ids: kseq(p.float(), q.float(), ids))
        assert off(law, p, 3) < 1e-6


def emit(rule: Rule, p: Table, q: Table) -> Callable[[torch.Generator], Tensor]:
    """One position with two candidates."""
    rule = once_each(rule)

    def once(generator: torch.Generator) -> Tensor:
        ids = torch.multinomial(q[()], 2, replacement=True, generator=generator)
        return draw_sequential(SequentialAcceptance(*rule(p[()], q[()], ids)), ids, generator)[0]

    return once


def test_texts_drawn_follow_the_target() -> None:
    p, q = tables("any", 13)
    assert fit(*texts(p, 1, 4000, emit(kseq, p, q))) > 0.01


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(mistake: Rule) -> None:
    p, q = tables("any", 13)
    law, _ = chains(p, q, 2, 2, mistake)
    assert off(law, p, 3) > 1e-3
    assert fit(*texts(p, 1, 4000, emit(mistake, p, q))) < 1e-6


def test_draw_follows_the_probabilities() -> None:
    p, q = (table[()] for table in tables("any", 1, size=4))
    ids = torch.tensor([0, 2, 3])
    result = kseq(p, q, ids)
    expected = Counter[tuple[int, bool]]()
    for place, one, residual in tried(lambda *_: result, p, q, (0, 2, 3)):
        if place is not None:
            expected[int(ids[place]), True] += one
        for token, share in enumerate(residual):
            expected[token, False] += one * share
    generator, drawn = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        token, accepted = draw_sequential(result, ids, generator)
        drawn[int(token), accepted] += 1
    assert fit(drawn, expected) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_is_the_token_wise_rule(kind: str) -> None:
    p, q = (table[()] for table in tables(kind, 3, size=4))
    assert factor(p, q, 1) == 1
    for token in q.nonzero()[:, 0]:
        ids = token[None]
        several, single = kseq(p, q, ids), token_wise(p.expand(2, -1), q[None], ids)
        assert torch.allclose(several.accept, single.accept, atol=1e-15)
        assert torch.allclose(several.residual, single.residual[0], atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_lies_between_one_candidate_and_what_k_can_cover(kind: str) -> None:
    for seed in range(5):
        p, q = (table[()] for table in tables(kind, seed, 0, size=4))
        before = float(torch.minimum(p, q).sum())
        for k in (1, 2, 3):
            found = position(kseq, p, q, k)
            beta = float(torch.minimum(q, p / factor(p, q, k)).sum())
            assert found == pytest.approx(1 - (1 - beta) ** k, abs=1e-12)
            assert before - 1e-6 <= found <= float(torch.minimum(p, 1 - (1 - q) ** k).sum()) + 1e-12
            before = found


def test_no_other_gamma_accepts_more_and_leaves_a_law() -> None:
    """A little below gamma some token has come out as a candidate more often than p allows."""
    for seed in range(5):
        p, q = (table[()] for table in tables("any", seed, 0, size=4))
        gamma = factor(p, q, 3)

        def left(gamma: float, p: Tensor = p, q: Tensor = q) -> float:
            overlap = torch.minimum(q, p / gamma)
            return float((p - overlap * (1 - (1 - overlap.sum()) ** 3) / overlap.sum()).min())

        assert 1 < gamma < 3
        assert left(gamma) >= 0 > left(gamma - 1e-5)


def test_two_candidates_do_not_cover_two_tokens() -> None:
    """The rule's known weakness: both ids may be drawn twice, and q's half counts as it did before."""
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    assert position(kseq, p, q, 2) == pytest.approx(0.75, abs=1e-6)


def test_gamma_of_known_laws() -> None:
    p, q = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0]], dtype=torch.float64)
    assert factor(p, q, 4) == pytest.approx(1, abs=1e-6)
    assert factor(p, q.flip(0), 4) > 1.2
    apart = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert factor(p, apart, 4) == 4
    assert kseq(p, apart, torch.tensor([2, 2])).accept.tolist() == [0, 0]
    assert kseq(p, apart, torch.tensor([2, 2])).residual.tolist() == p.tolist()


def test_a_small_overlap_keeps_its_digits_in_float32() -> None:
    p = torch.tensor([1e-6, 1 - 1e-6, 0.0], dtype=torch.float64)
    q = torch.tensor([1e-6, 0.0, 1 - 1e-6], dtype=torch.float64)
    ids = torch.tensor([0, 2, 2, 2])
    for exact, rounded in zip(kseq(p, q, ids), kseq(p.float(), q.float(), ids), strict=True):
        assert torch.allclose(rounded.double(), exact, rtol=1e-5, atol=1e-12)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(drafts(), st.integers(1, 5))
def test_results_are_probabilities_of_the_targets_ids(case: tuple[Tensor, Tensor, Tensor], k: int) -> None:
    p, q, ids = case[0][0], case[1][0], case[2][:1].expand(k)
    accept, residual = kseq(p, q, ids)
    assert accept.dtype == residual.dtype == p.dtype
    assert 1 <= factor(p, q, k) <= k
    assert bool(((accept >= 0) & (accept <= 1)).all())
    assert bool((residual >= 0).all())
    assert abs(float(residual.sum()) - 1) < 1e-5
    assert not residual[p == 0].any()


def test_a_large_vocabulary_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    likes = 3 * torch.randn(49152, generator=generator, dtype=torch.float64)
    p, q = likes.softmax(-1), (likes + torch.randn(49152, generator=generator)).softmax(-1)
    ids = torch.multinomial(q, 4, replacement=True, generator=generator)
    exact, rounded = kseq(p, q, ids), kseq(p.float(), q.float(), ids)
    assert torch.allclose(rounded.accept.double(), exact.accept, atol=1e-5)
    assert (rounded.residual.double() - exact.residual).abs().sum() < 1e-4
