"""DPO's loss has the value, slope and symmetry of equation 7."""

from __future__ import annotations

import math

import pytest
import torch

from techniques.preference.core import losses

POLICY = torch.tensor([[-10.0, -20.0, -5.0], [-12.0, -18.0, -5.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-11.0, -19.0, -4.0], [-11.5, -21.0, -4.0]], dtype=torch.float64)
BETA = 0.3
H = torch.tensor([1.5, -4.0, 0.0], dtype=torch.float64)


def test_value():
    found = losses.sigmoid(POLICY[0], POLICY[1], REFERENCE[0], REFERENCE[1], BETA)
    expected = [math.log1p(math.exp(-BETA * h)) for h in H.tolist()]
    assert found.tolist() == pytest.approx(expected)


def test_at_the_reference_it_is_ln_2():
    found = losses.sigmoid(REFERENCE[0], REFERENCE[1], REFERENCE[0], REFERENCE[1], BETA)
    assert found.tolist() == pytest.approx([math.log(2)] * 3)


def test_swapping_the_pair_adds_beta_h():
    found = losses.sigmoid(POLICY[0], POLICY[1], REFERENCE[0], REFERENCE[1], BETA)
    swapped = losses.sigmoid(POLICY[1], POLICY[0], REFERENCE[1], REFERENCE[0], BETA)
    torch.testing.assert_close(found - swapped, -BETA * H)


def test_gradient_is_the_papers():
    # section 4: -beta sigmoid(r_l - r_w) (grad log pi_w - grad log pi_l)
    chosen, rejected = (row.clone().requires_grad_() for row in POLICY)
    losses.sigmoid(chosen, rejected, REFERENCE[0], REFERENCE[1], BETA).sum().backward()
    expected = -BETA * torch.sigmoid(-BETA * H)
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_large_margins_stay_finite():
    far = torch.tensor([1e4, -1e4])
    found = losses.sigmoid(far, -far, torch.zeros(2), torch.zeros(2), 1.0)
    assert found.tolist() == [0.0, 2e4]
