"""Every loss has its formula's value, start and slope; none moves where both completions are the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from techniques.preference.core import losses

CHOSEN = torch.tensor([1.0, -1.0, -1.0, 3.0], dtype=torch.float64)
REJECTED = torch.tensor([-0.5, 3.0, -1.0, -4.0], dtype=torch.float64)
H = CHOSEN - REJECTED
BETA = 0.3

Loss = Callable[[Tensor, Tensor, float], Tensor]
PAIRED: dict[str, Loss] = {
    "sigmoid": losses.sigmoid,
    "cdpo": lambda w, r, beta: losses.cdpo(w, r, beta, 0.2),
    "robust": lambda w, r, beta: losses.robust(w, r, beta, 0.2),
    "ipo": losses.ipo,
    "hinge": losses.hinge,
    "sppo": losses.sppo,
    "apo_zero": losses.apo_zero,
    "apo_down": losses.apo_down,
    "discopop": losses.discopop,
}


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, w: float, r: float, b: float) -> float:
    """The definitions in plain arithmetic, as TRL's trainer has them where it has them."""
    h = w - r
    right, wrong = -math.log(s(b * h)), -math.log(s(-b * h))
    mixed = s(b * h / 0.05)
    return {
        "sigmoid": right,
        "cdpo": 0.8 * right + 0.2 * wrong,
        "robust": (0.8 * right - 0.2 * wrong) / 0.6,
        "ipo": (h - 1 / (2 * b)) ** 2,
        "hinge": max(0.0, 1 - b * h),
        "sppo": (w - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
        "apo_zero": (1 - s(b * w)) + s(b * r),
        "apo_down": s(b * w) + (1 - s(b * h)),
        "discopop": right * (1 - mixed) + math.exp(-b * h) * mixed,
    }[name]


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("beta", [0.1, BETA])
def test_values_are_the_definitions(name: str, beta: float):
    found = PAIRED[name](CHOSEN, REJECTED, beta)
    expected = [by_hand(name, w, r, beta) for w, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_two_values_worked_out():
    w, r = torch.tensor([2.0]), torch.tensor([-3.0])
    # h = 5, beta h = 0.5: sigmoid(0.5) = 0.6224593
    assert losses.sigmoid(w, r, 0.1).item() == pytest.approx(0.4740770, abs=1e-6)
    assert losses.ipo(w, r, 0.1).item() == pytest.approx(0.0, abs=1e-9)
    assert losses.hinge(w, r, 0.1).item() == pytest.approx(0.5)
    # (2 - 5)^2 + (-3 + 5)^2
    assert losses.sppo(w, r, 0.1).item() == pytest.approx(13.0)
    # sigmoid(0.2) = 0.5498340, sigmoid(-0.3) = 0.4255575
    assert losses.apo_zero(w, r, 0.1).item() == pytest.approx(0.8757235, abs=1e-6)
    assert losses.apo_down(w, r, 0.1).item() == pytest.approx(0.9273747, abs=1e-6)


STARTS = {
    "sigmoid": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "ipo": 25.0,
    "hinge": 1.0,
    "sppo": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
}


@pytest.mark.parametrize("name", PAIRED)
def test_value_at_the_start(name: str):
    zero = torch.zeros(3, dtype=torch.float64)
    assert PAIRED[name](zero, zero, 0.1).tolist() == pytest.approx([STARTS[name]] * 3)


@pytest.mark.parametrize("name", sorted(set(PAIRED) - {"sppo", "apo_zero", "apo_down"}))
def test_the_same_completion_on_both_sides_has_no_gradient(name: str):
    both = CHOSEN.clone().requires_grad_()
    PAIRED[name](both, both, BETA).sum().backward()
    assert both.grad is not None
    assert both.grad.tolist() == pytest.approx([0.0] * 4)


def test_of_those_that_see_each_side_by_itself_the_same_completion_has_the_gradient_they_say():
    def slope(name: str) -> list[float]:
        both = CHOSEN.clone().requires_grad_()
        PAIRED[name](both, both, BETA).sum().backward()
        assert both.grad is not None
        found: list[float] = both.grad.tolist()
        return found

    s = torch.sigmoid(BETA * CHOSEN)
    assert slope("apo_zero") == pytest.approx([0.0] * 4)
    assert slope("sppo") == pytest.approx((4 * CHOSEN).tolist())
    assert slope("apo_down") == pytest.approx((BETA * s * (1 - s)).tolist())


def test_swapping_the_pair_adds_beta_h():
    torch.testing.assert_close(
        losses.sigmoid(CHOSEN, REJECTED, BETA) - losses.sigmoid(REJECTED, CHOSEN, BETA), -BETA * H
    )


def slopes(loss: Callable[..., Tensor], *sides: Tensor) -> list[Tensor]:
    leaves = [side.clone().requires_grad_() for side in sides]
    return list(torch.autograd.grad(loss(*leaves).sum(), leaves))


def test_gradient_is_the_papers():
    # section 4: -beta sigmoid(r_l - r_w) (grad log pi_w - grad log pi_l)
    chosen, rejected = slopes(lambda w, r: losses.sigmoid(w, r, BETA), CHOSEN, REJECTED)
    expected = -BETA * torch.sigmoid(-BETA * H)
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(rejected, -expected)


@pytest.mark.parametrize("flipped", [0.05, 0.3])
def test_cdpo_rests_where_the_odds_are_those_of_the_noise(flipped: float):
    rest = torch.tensor([math.log((1 - flipped) / flipped) / BETA], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    at, above = (slopes(lambda w, r: losses.cdpo(w, r, BETA, flipped), w, zero)[0].item() for w in (rest, rest + 0.5))
    assert at == pytest.approx(0.0, abs=1e-12)
    assert above > 1e-3


@pytest.mark.parametrize("flipped", [0.1, 0.3])
def test_robust_is_unbiased_and_cdpo_is_not(flipped: float):
    def over_labels(loss: Any) -> Tensor:
        return (1 - flipped) * loss(CHOSEN, REJECTED, BETA, flipped) + flipped * loss(REJECTED, CHOSEN, BETA, flipped)

    true = losses.sigmoid(CHOSEN, REJECTED, BETA)
    torch.testing.assert_close(over_labels(losses.robust), true)
    assert float((over_labels(losses.cdpo) - true).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["cdpo", "robust"])
def test_without_noise_it_is_dpo(name: str):
    found = getattr(losses, name)(CHOSEN, REJECTED, BETA, 0.0)
    torch.testing.assert_close(found, losses.sigmoid(CHOSEN, REJECTED, BETA))


def test_ipo_rests_at_half_the_inverse_of_beta_and_pulls_back_beyond():
    zero = torch.zeros(3, dtype=torch.float64)
    margins = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)
    (slope, _) = slopes(lambda w, r: losses.ipo(w, r, 0.1), margins, zero)
    assert slope.tolist() == pytest.approx([-2.0, 0.0, 2.0])


def test_hinge_stops_at_a_margin_of_one():
    margins, zero = torch.tensor([9.9, 10.1]), torch.zeros(2)
    (slope, _) = slopes(lambda w, r: losses.hinge(w, r, 0.1), margins, zero)
    assert slope.tolist() == pytest.approx([-0.1, 0.0])


def test_apo_says_which_way_each_side_goes():
    zero = torch.zeros(1)
    up, down = slopes(lambda w, r: losses.apo_zero(w, r, 0.4), zero, zero)
    assert (up.item(), down.item()) == pytest.approx((-0.1, 0.1))
    chosen, rejected = slopes(lambda w, r: losses.apo_down(w, r, 0.4), zero, zero)
    # at the start the chosen side stands still and the rejected one falls; then both fall
    assert (chosen.item(), rejected.item()) == pytest.approx((0.0, 0.1))
    later = slopes(lambda w, r: losses.apo_down(w, r, 0.4), zero, zero - 5)[0]
    assert later.item() > 0.05


def test_discopop_is_logistic_below_and_exponential_above():
    zero = torch.zeros(2, dtype=torch.float64)
    margin = torch.tensor([-20.0, 20.0], dtype=torch.float64)
    found = losses.discopop(margin, zero, 0.1)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(2.0)), math.exp(-2.0)])
    bend = slopes(lambda w, r: losses.discopop(w, r, 0.1), zero, zero)[0]
    assert float(bend[0]) > 0


@pytest.mark.parametrize("name", PAIRED)
def test_large_margins_stay_finite(name: str):
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = PAIRED[name](far, -far.detach(), 1.0)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert far.grad is not None
    assert bool(far.grad.isfinite().all())


def test_kto_is_half_at_the_start_and_saturates_on_the_right_side():
    ratio = torch.tensor([0.0, 0.0, 2.0, 2.0, -2.0])
    wanted = torch.tensor([True, False, True, False, True])
    assert losses.kto(ratio[:2], wanted[:2], torch.tensor(0.0), 0.1).tolist() == pytest.approx([0.5, 0.5])
    found = losses.kto(ratio, wanted, torch.tensor(1.0), 0.5)
    expected = [1 - s(0.5 * x) for x in (-1.0, 1.0, 1.0, -1.0, -3.0)]
    assert found.tolist() == pytest.approx(expected)


def test_odds_ratio_of_probabilities():
    p, q = torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.5])
    found = losses.odds_ratio(p.log(), q.log())
    # odds 4 against 1/4: sigmoid(log 16) = 16/17
    assert found.tolist() == pytest.approx([-math.log(16 / 17), math.log(2)], abs=1e-6)
    certain = losses.odds_ratio(torch.tensor([0.0]), torch.tensor([-1.0]))
    assert bool(certain.isfinite().all())


def test_simpo_wants_more_than_the_margin():
    found = losses.simpo(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -1.0]), beta=2.0, gamma=1.0)
    assert found.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(1.0))])


def test_unlikelihood_is_of_the_probability_that_is_left():
    found = losses.unlikelihood(torch.tensor([[0.5, 0.9], [1e-6, 1.0]]).log())
    assert found[0].tolist() == pytest.approx([-math.log(0.5), -math.log(0.1)], abs=1e-5)
    assert found[1, 0].item() == pytest.approx(1e-6, rel=1e-3)
    assert math.isfinite(found[1, 1])


def test_all_losses_are_tested():
    public = {name for name in vars(losses) if not name.startswith("_") and callable(getattr(losses, name))}
    others = {"Tensor", "kto", "odds_ratio", "simpo", "unlikelihood"}
    assert public == set(itertools.chain(PAIRED, others))


def test_odds_keep_their_digits_at_both_ends():
    p = torch.tensor([1e-7, 0.3, 0.5, 0.999], dtype=torch.float64)
    found = losses.unlikelihood(p.log().float())
    torch.testing.assert_close(found.double(), -torch.log1p(-p), rtol=2e-3, atol=0.0)
