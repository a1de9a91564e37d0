"""Where the optimum is known: DPO's least loss is there, and what other losses make of the same pairs."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.preference.core.tabular import World
from techniques.preference.core import losses

WORLD = World.random(prompts=3, completions=5, seed=0)
BETA = 0.7


def test_optimum_beats_every_policy_near_and_far():
    best = WORLD.optimum(BETA)
    value = WORLD.value(best, BETA)
    # beta log Z, the paper's own figure
    torch.testing.assert_close(value, BETA * (WORLD.reference + WORLD.reward / BETA).logsumexp(-1))
    generator = torch.Generator().manual_seed(1)
    for size in (0.01, 0.1, 1.0, 5.0):
        for _ in range(20):
            other = (best + size * torch.randn(best.shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
            assert bool((WORLD.value(other, BETA) < value).all())
    assert bool((WORLD.value(WORLD.reference, BETA) < value).all())


@pytest.mark.parametrize("beta", [0.2, BETA, 2.0])
def test_dpos_least_loss_is_at_the_optimum(beta: float):
    found = WORLD.fit(partial(losses.sigmoid, beta=beta))
    torch.testing.assert_close(found, WORLD.optimum(beta), atol=1e-6, rtol=0.0)


def test_loss_has_no_slope_at_the_optimum_and_one_anywhere_else():
    for start, flat in ((WORLD.optimum(BETA), True), (WORLD.reference, False), (WORLD.optimum(2 * BETA), False)):
        logits = start.clone().requires_grad_()
        WORLD.expected_loss(logits.log_softmax(-1), partial(losses.sigmoid, beta=BETA)).backward()
        assert logits.grad is not None
        assert (float(logits.grad.abs().max()) < 1e-12) == flat


def test_dpo_cannot_tell_rewards_that_differ_by_prompt_alone():
    shifted = World(WORLD.reward + torch.tensor([[5.0], [-3.0], [0.0]]), WORLD.reference)
    torch.testing.assert_close(shifted.preferred(), WORLD.preferred())
    torch.testing.assert_close(shifted.optimum(BETA), WORLD.optimum(BETA))


def test_noisy_labels_move_dpo_and_not_robust():
    flipped = 0.3

    class Noisy(World):
        def preferred(self) -> torch.Tensor:
            true = super().preferred()
            return (1 - flipped) * true + flipped * (1 - true)

    noisy = Noisy(WORLD.reward, WORLD.reference)
    best = WORLD.optimum(BETA)

    def away(loss: object) -> float:
        return float((noisy.fit(loss) - best).abs().max())  # type: ignore[arg-type]

    assert away(partial(losses.sigmoid, beta=BETA)) > 0.1
    assert away(partial(losses.robust, beta=BETA, flipped=flipped)) < 1e-6


def test_ipos_least_loss_is_the_papers():
    # Azar et al. 2023: log-ratios differ by (E p(y > .) - E p(y' > .)) / beta, the opponent drawn as the pairs are
    found = WORLD.fit(partial(losses.ipo, beta=BETA)) - WORLD.reference
    wins = WORLD.preferred().mean(-1)
    expected = (wins[:, :, None] - wins[:, None, :]) / BETA
    torch.testing.assert_close(found[:, :, None] - found[:, None, :], expected, atol=1e-6, rtol=0.0)
