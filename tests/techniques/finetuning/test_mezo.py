"""MeZO's step is the paper's, without its drift, and takes no memory of a backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetuned import IDS, JOB, MODELS, losses, prepared
from torch import Tensor, nn

from bench.errors import Unsupported
from bench.families.finetuning import TextBatch
from bench.probes.memory import bytes_held
from techniques.finetuning.mezo import Direction, Mezo, moved

BATCH = TextBatch(IDS, IDS, 20)


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_the_papers(name: str):
    technique = Mezo(learning_rate=1e-4, warmup_steps=0, epsilon=1e-2, weight_decay=0.1)
    arm = prepared(technique, name, seed=4)
    plain: Any = prepared(Mezo(), name).model
    z = [Direction(4, 0).of(place, p) for place, p in enumerate(plain.parameters())]
    start = copies(plain)

    def loss_at(sign: int) -> Tensor:
        with torch.no_grad():
            for parameter, value, direction in zip(plain.parameters(), start, z, strict=True):
                parameter.copy_(value + sign * 1e-2 * direction)
            loss: Tensor = plain(IDS, labels=IDS).loss
        return loss

    above, below = loss_at(1), loss_at(-1)
    slope = (above - below) / 2e-2
    assert float(slope.abs()) > 0.01
    step = next(technique.steps(arm, JOB))
    assert float(step.outputs[0]) == pytest.approx(float(above + below) / 2, abs=1e-5)
    for value, direction, parameter in zip(start, z, arm.model.parameters(), strict=True):
        expected = value * (1 - 1e-4 * 0.1) - 1e-4 * slope * direction
        # the slope is a difference of two losses: its own rounding, 1e-4, is what is left
        torch.testing.assert_close(parameter.detach(), expected, atol=2e-6, rtol=1e-5)


def test_the_slope_is_that_along_the_direction():
    technique = Mezo(epsilon=1e-3)
    arm = prepared(technique)
    technique.batch_loss(arm, BATCH).backward()
    direction = Direction(7, 3)
    pairs = enumerate(arm.model.parameters())
    exact = sum(float((p.grad * direction.of(place, p)).sum()) for place, p in pairs)
    found = []
    with torch.no_grad():
        for epsilon in (1e-3, -1e-3):
            with moved(arm.model, direction, epsilon):
                found.append(float(technique.batch_loss(arm, BATCH)))
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_the_same_bits_after_the_two_passes(name: str, dtype: str):
    """Adding and taking away in place, as the paper's code does, would leave rounding behind."""
    technique = Mezo(learning_rate=1e-300, warmup_steps=0)
    arm = prepared(technique, name, dtype)
    before = copies(arm.model)
    losses(technique, arm)
    assert all(torch.equal(old, new) for old, new in zip(before, arm.model.parameters(), strict=True))
    in_place = [p.clone() for p in before]
    for _ in range(6):
        for place, p in enumerate(in_place):
            z = Direction(0, 0).of(place, p)
            p.add_(z, alpha=1e-3).add_(z, alpha=-2e-3).add_(z, alpha=1e-3)
    assert any(not torch.equal(old, new) for old, new in zip(before, in_place, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_within_every_weight_is_moved_and_tied_ones_alike(name: str):
    arm = prepared(Mezo(), name)
    seen: dict[str, Tensor] = {}
    names = {id(p): n for n, p in arm.model.named_parameters()}

    def look(module: nn.Module, _: Any, __: Any) -> None:
        for p in module.parameters(recurse=False):
            own = seen.setdefault(names[id(p)], p.detach().clone())
            assert torch.equal(own, p)

    with torch.no_grad(), moved(arm.model, Direction(0, 0), 0.5):
        hooks = [m.register_forward_hook(look, prepend=True) for m in arm.model.modules()]
        arm.model(IDS)
        for hook in hooks:
            hook.remove()
    assert seen.keys() == {n for n, _ in arm.model.named_parameters()}
    for place, (own, p) in enumerate(arm.model.named_parameters()):
        torch.testing.assert_close(seen[own], p.detach() + 0.5 * Direction(0, 0).of(place, p))


def test_an_error_gives_the_weights_back():
    arm = prepared(Mezo())
    before = copies(arm.model)
    hook = arm.model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), moved(arm.model, Direction(0, 0), 0.5):
        arm.model(IDS)
    hook.remove()
    assert all(torch.equal(old, new) for old, new in zip(before, arm.model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in arm.model.modules())


def test_a_weight_that_nobody_moves_is_refused():
    class Borrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.a(x), self.b.weight)

    model = Borrowed()
    with pytest.raises(Unsupported, match="2 of this model's weights"), torch.no_grad():  # noqa: SIM117
        with moved(model, Direction(0, 0), 0.5):
            model(torch.ones(1, 2))


def test_every_step_has_a_direction_of_its_own():
    technique = Mezo(learning_rate=1e-3, warmup_steps=0)
    arm = prepared(technique)
    moves = []
    for _ in range(3):
        before = copies(arm.model)
        next(technique.steps(arm, JOB))
        moves.append(torch.cat([(p - old).flatten() for p, old in zip(arm.model.parameters(), before, strict=True)]))
    cosines = torch.corrcoef(torch.stack([move.detach() for move in moves])).abs()
    assert float(cosines.triu(1).max()) < 0.05


def test_directions_are_normal_and_differ_by_seed_step_and_place():
    p = torch.zeros(100, 100)
    first = Direction(0, 0).of(0, p)
    assert torch.equal(first, Direction(0, 0).of(0, p))
    assert float(first.mean()) == pytest.approx(0, abs=0.03)
    assert float(first.std()) == pytest.approx(1, abs=0.03)
    for other in (Direction(1, 0).of(0, p), Direction(0, 1).of(0, p), Direction(0, 0).of(1, p)):
        assert abs(float(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1])) < 0.05


def test_holds_the_weights_and_nothing_else():
    technique = Mezo()
    arm = prepared(technique, dtype="bfloat16")
    weights = sum(p.nbytes for p in arm.model.parameters())
    for _ in technique.steps(arm, JOB):
        held = bytes_held(arm.holdings())
        assert held["gradients"] == held["optimizer"] == 0
        assert weights <= held["weights"] < weights + 1000
    assert "adapters" not in held


def test_learns_where_the_slope_tells():
    technique = Mezo(learning_rate=3e-4, warmup_steps=0)
    arm = prepared(technique)
    start = float(technique.batch_loss(arm, BATCH).detach())
    for _ in range(12):
        losses(technique, arm)
    assert float(technique.batch_loss(arm, BATCH).detach()) < start - 0.02
