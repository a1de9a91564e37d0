from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from enumerated import KINDS, Table, along, chain, draft, drafts, fit, off, once_each, one_by_one, tables, texts
from hypothesis import given, settings
from torch import Tensor

from techniques.decoding.core.acceptance import Acceptance, draw, token_wise

G = 3
Rule = Callable[[Tensor, Tensor, Tensor], Acceptance]


def told_the_draft_was_sampled(p: Tensor, q: Tensor, drafted: Tensor) -> Acceptance:
    """Right in itself; wrong where the ids were q's likeliest ones."""
    return token_wise(p, q, drafted)


def bonus_from_one_place_before(p: Tensor, q: Tensor, drafted: Tensor) -> Acceptance:
    right = token_wise(p, q, drafted)
    return right._replace(residual=torch.cat([right.residual[:-1], p[-2:-1]]))


def residual_not_normalised(p: Tensor, q: Tensor, drafted: Tensor) -> Acceptance:
    """Drawn through its running sum: what is missing to 1 falls on the last id."""
    residual = torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]])
    residual[:, -1] += 1 - residual.sum(-1)
    return token_wise(p, q, drafted)._replace(residual=residual)


def rejected_drawn_from_p(p: Tensor, q: Tensor, drafted: Tensor) -> Acceptance:
    return token_wise(p, q, drafted)._replace(residual=p)


MISTAKES = [
    told_the_draft_was_sampled,
    bonus_from_one_place_before,
    residual_not_normalised,
    rejected_drawn_from_p,
]


def likeliest(q: Table) -> Table:
    return {context: (law == law.max()).to(law.dtype) for context, law in q.items()}


@pytest.mark.parametrize("g", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_emitted_law_is_the_targets(kind: str, seed: int, g: int) -> None:
    p, q = tables(kind, seed, g, size=3 + seed % 2)
    law, _ = chain(p, q, g, one_by_one(token_wise))
    assert off(law, p, g + 1) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_a_draft_chosen_without_chance_is_a_certain_draft(seed: int) -> None:
    p, q = tables("any", seed)
    law, _ = chain(p, likeliest(q), G, one_by_one(token_wise))
    assert off(law, p, G + 1) < 1e-12


def test_in_float32_the_law_is_off_by_its_rounding_only() -> None:
    for seed in range(3):
        p, q = tables("mixed", seed)
        law, _ = chain(p, q, G, one_by_one(lambda p, q, drafted: token_wise(p.float(), q.float(), drafted)))
        assert off(law, p, G + 1) < 1e-6


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_change_the_law(mistake: Rule) -> None:
    p, q = tables("any", 0)
    drafted_from = likeliest(q) if mistake is told_the_draft_was_sampled else q
    law, _ = chain(p, q, G, one_by_one(mistake), drafted_from)
    assert off(law, p, G + 1) > 1e-3


def emit(rule: Rule, p: Table, q: Table, drafted_from: Table) -> Callable[[torch.Generator], Tensor]:
    rule = once_each(rule)

    def once(generator: torch.Generator) -> Tensor:
        ids = draft(drafted_from, 2, generator)
        return draw(rule(along(p, ids), along(q, ids)[:-1], ids), ids, generator)[0]

    return once


def test_texts_drawn_follow_the_target() -> None:
    p, q = tables("any", 0)
    assert fit(*texts(p, 3, 2000, emit(token_wise, p, q, q))) > 0.01
    assert fit(*texts(p, 3, 1500, emit(lambda p, q, ids: token_wise(p, _one_hot(ids), ids), p, q, likeliest(q)))) > 0.01


def _one_hot(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, 3).double()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_texts_drawn_with_a_mistake_do_not(mistake: Rule) -> None:
    p, q = tables("any", 0)
    drafted_from = likeliest(q) if mistake is told_the_draft_was_sampled else q
    assert fit(*texts(p, 3, 2000, emit(mistake, p, q, drafted_from))) < 1e-6


def test_draw_follows_the_probabilities() -> None:
    p, q = tables("any", 0)
    ids = torch.tensor([1, 1, 2])  # none of the three certain to be accepted, or rejected
    result = token_wise(along(p, ids), along(q, ids)[:-1], ids)
    expected = {
        (kept, token): stop * share
        for kept, (stop, residual) in enumerate(one_by_one(lambda *_: result)(result.residual, result.residual, ids))
        for token, share in enumerate(residual)
    }
    generator, drawn = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        tokens, accepted = draw(result, ids, generator)
        assert tokens[:-1].tolist() == ids[:accepted].tolist()
        drawn[accepted, int(tokens[-1])] += 1
    assert fit(drawn, expected) > 0.01


@pytest.mark.parametrize(
    ("alpha", "g", "cost", "gain"),
    # Leviathan et al. 2023, theorem 3.8; the draft costs `cost` of a step of the target's
    [(0.2, 3, 0.0, 1.248), (0.75, 7, 0.02, 3.157), (0.5, 3, 0.05, 1.630), (0.7, 6, 0.05, 2.353), (0.8, 8, 0.05, 3.092)],
)
def test_the_mean_is_the_closed_form(alpha: float, g: int, cost: float, gain: float) -> None:
    some = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([alpha, 1 - alpha], dtype=torch.float64)
    p, q = (dict.fromkeys(tables("any", 0, g, size=2)[0], law) for law in some)
    _, mean = chain(p, q, g, one_by_one(token_wise))
    assert mean + 1 == pytest.approx((1 - alpha ** (g + 1)) / (1 - alpha), rel=1e-12)
    assert (mean + 1) / (g * cost + 1) == pytest.approx(gain, abs=1e-3)


def test_one_token_is_accepted_as_often_as_the_laws_overlap() -> None:
    for kind in KINDS:
        p, q = tables(kind, 4)
        _, mean = chain(p, q, 1, one_by_one(token_wise))
        assert mean == pytest.approx(float(torch.minimum(p[()], q[()]).sum()), abs=1e-12), kind


def test_a_draft_from_the_target_itself_is_always_accepted() -> None:
    p, _ = tables("any", 1)
    ids = torch.tensor([2, 0])
    result = token_wise(along(p, ids), along(p, ids)[:-1], ids)
    assert torch.equal(result.accept, torch.ones(2, dtype=torch.float64))
    tokens, accepted = draw(result, ids, torch.Generator().manual_seed(0))
    assert accepted == 2
    assert tokens[:2].tolist() == [2, 0]


def test_a_certain_draft_is_not_repeated_after_its_rejection() -> None:
    p = tables("any", 2)[0][()].expand(2, -1)
    result = token_wise(p, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([1]))
    assert result.accept[0] == p[0, 1]
    assert result.residual[0, 1] == 0
    assert result.residual[0].sum() == pytest.approx(1.0)


def test_an_id_that_q_cannot_draw_is_never_accepted() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    for token in (1, 2):
        assert token_wise(p, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([token])).accept.tolist() == [0.0]


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(drafts())
def test_results_are_probabilities_of_the_targets_ids(case: tuple[Tensor, Tensor, Tensor]) -> None:
    p, q, ids = case
    accept, residual = token_wise(p, q, ids)
    assert accept.dtype == residual.dtype == p.dtype
    assert bool(((accept >= 0) & (accept <= 1)).all())
    assert bool((residual >= 0).all())
    assert (residual.sum(-1) - 1).abs().max() < 1e-5
    assert not residual[p == 0].any()


def test_a_large_vocabulary_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    likes = 3 * torch.randn(3, 49152, generator=generator, dtype=torch.float64)
    p, q = likes.softmax(-1), (likes[:2] + torch.randn(2, 49152, generator=generator)).softmax(-1)
    ids = torch.multinomial(q, 1, generator=generator)[:, 0]
    exact, rounded = token_wise(p, q, ids), token_wise(p.float(), q.float(), ids)
    assert torch.allclose(rounded.accept.double(), exact.accept, atol=1e-5)
    assert (rounded.residual.double() - exact.residual).abs().sum(-1).max() < 1e-5
