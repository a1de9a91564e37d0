from __future__ import annotations

import itertools

import pytest
import torch

from techniques.decoding.core.acceptance import Acceptance, draw, token_wise

V, G = 3, 2


def law(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """A context-dependent distribution over V ids, for every context of up to G ids."""
    generator = torch.Generator().manual_seed(seed)
    contexts = [c for n in range(G + 1) for c in itertools.product(range(V), repeat=n)]
    return {c: torch.rand(V, generator=generator, dtype=torch.float64).softmax(-1) ** 1 for c in contexts}


def emitted(p: dict, q: dict, rule: object) -> torch.Tensor:
    """Exact law of the first G + 1 ids: emitted by one verified draft, completed from p."""
    total = torch.zeros((V,) * (G + 1), dtype=torch.float64)
    for drafted in itertools.product(range(V), repeat=G):
        contexts = [drafted[:i] for i in range(G + 1)]
        chance = torch.stack([q[c][x] for c, x in zip(contexts, drafted, strict=False)]).prod()
        result: Acceptance = rule(
            torch.stack([p[c] for c in contexts]),
            torch.stack([q[c] for c in contexts[:-1]]),
            torch.tensor(drafted),
        )
        for accepted in range(G + 1):
            weight = chance * result.accept[:accepted].prod()
            if accepted < G:
                weight = weight * (1 - result.accept[accepted])
            for extra in range(V):
                complete(total, (*drafted[:accepted], extra), weight * result.residual[accepted][extra], p)
    return total


def complete(total: torch.Tensor, prefix: tuple[int, ...], weight: torch.Tensor, p: dict) -> None:
    if len(prefix) == G + 1:
        total[prefix] += weight
        return
    for extra in range(V):
        complete(total, (*prefix, extra), weight * p[prefix][extra], p)


def target(p: dict) -> torch.Tensor:
    total = torch.zeros((V,) * (G + 1), dtype=torch.float64)
    complete(total, (), torch.tensor(1.0, dtype=torch.float64), p)
    return total


def bonus_from_the_last_but_one(p: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> Acceptance:
    right = token_wise(p, q, drafted)
    return right._replace(residual=torch.cat([right.residual[:-1], p[-2:-1]]))


def residual_not_normalised(p: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> Acceptance:
    right = token_wise(p, q, drafted)
    return right._replace(residual=torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]]))


def resampled_from_p(p: torch.Tensor, q: torch.Tensor, drafted: torch.Tensor) -> Acceptance:
    return token_wise(p, q, drafted)._replace(residual=p)


@pytest.mark.parametrize("seed", range(5))
def test_the_emitted_law_is_the_targets(seed: int) -> None:
    p, q = law(seed), law(seed + 100)
    assert (emitted(p, q, token_wise) - target(p)).abs().max() < 1e-12


@pytest.mark.parametrize("rule", [bonus_from_the_last_but_one, residual_not_normalised, resampled_from_p])
def test_historical_mistakes_are_seen(rule: object) -> None:
    p, q = law(0), law(100)
    assert (emitted(p, q, rule) - target(p)).abs().max() > 1e-3


def test_acceptance_is_one_minus_the_distance() -> None:
    p, q = law(3)[()], law(4)[()]
    drafted = torch.arange(V)
    accept = token_wise(p.expand(V + 1, V), q.expand(V, V), drafted).accept
    assert (q * accept).sum() == pytest.approx(torch.minimum(p, q).sum().item())


def test_a_draft_from_the_target_itself_is_always_accepted() -> None:
    p = law(1)[()].expand(G + 1, V)
    result = token_wise(p, p[:-1], torch.tensor([2, 0]))
    assert torch.equal(result.accept, torch.ones(G, dtype=torch.float64))
    tokens, accepted = draw(result, torch.tensor([2, 0]), torch.Generator().manual_seed(0))
    assert accepted == G
    assert tokens[:G].tolist() == [2, 0]


def test_a_one_hot_draft_is_never_repeated_after_rejection() -> None:
    p = law(2)[()].expand(2, V)
    q = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    result = token_wise(p, q, torch.tensor([1]))
    assert result.accept[0] == pytest.approx(p[0, 1].item())
    assert result.residual[0, 1] == 0
    assert result.residual[0].sum() == pytest.approx(1.0)
