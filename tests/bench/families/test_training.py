"""The optimisation loop is the textbook's, leaves nothing behind and waits for nothing."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import Diverged
from bench.families import training
from bench.families.training import (
    Looks,
    TrainedPrepared,
    Training,
    TrainingJob,
    TrainingWorkload,
    checksum,
    frozen,
    order,
    training_gates,
)
from bench.models import Source, Sources
from bench.technique import Prepared
from bench.workload import Built, Quality, Work


class Batch:
    """Inputs and targets of a linear regression."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(8, 4, generator=generator)
        self.y = torch.randn(8, 3, generator=generator)
        self.tokens = 8


class Regression(Training):
    """The smallest technique there is."""

    train_mode: ClassVar[bool] = True
    blow_up: bool = False

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()

    def prepare(self, sources: Sources | None = None) -> TrainedPrepared:
        return self.trained(self.network())

    def batch_loss(self, prepared: TrainedPrepared, batch: Batch) -> Tensor:
        loss = nn.functional.mse_loss(prepared.model(batch.x), batch.y)
        return loss * torch.inf if self.blow_up else loss


class Descent(Regression):
    """Updates that can be written down: plain gradient descent."""

    def optimizer_over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=123.0)


class Questions(TrainingWorkload):
    """Batches of numbers."""

    family: ClassVar[str] = "none"
    bad: int | None = Field(default=None)

    def build(self, sources: Sources, seed: int) -> Built:
        return {}

    def job(self, built: Built, first: int, count: int, seed: int, device: str) -> TrainingJob:
        batches = [Batch(number) for number in range(first, first + count)]
        for number, batch in enumerate(batches, start=first):
            if number == self.bad:
                batch.y[:] = torch.nan
        return TrainingJob(batches=tuple(batches), first_step=first, seed=seed)

    def quality(
        self, technique: Any, prepared: Prepared, built: Built, seed: int, source: Source, reference: Any
    ) -> Quality:
        return Quality()

    def work(self) -> tuple[Work, Work, Work]:
        return Work(), Work(), Work()


def test_warm_up_is_linear_and_then_constant():
    technique = Regression(learning_rate=1.0, warmup_steps=4)
    assert [technique.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Regression(learning_rate=0.5, warmup_steps=0).rate(0) == 0.5


def test_schedule_goes_on_from_first_step():
    technique = Regression(learning_rate=1e-3, warmup_steps=4)
    prepared = technique.prepare()
    assert prepared.optimizer is not None
    rates = []
    for _ in technique.steps(prepared, TrainingJob(batches=(Batch(0), Batch(1)), first_step=2)):
        rates += [group["lr"] for group in prepared.optimizer.param_groups]
    assert rates == [7.5e-4, 1e-3]


def test_steps_are_gradient_descent_with_nothing_left_over_from_the_step_before():
    technique = Descent(learning_rate=0.1, warmup_steps=2, max_grad_norm=1e9)
    prepared = technique.prepare()
    batches = (Batch(0), Batch(1), Batch(2))
    losses = [float(step.outputs[0]) for step in technique.steps(prepared, TrainingJob(batches=batches))]
    by_hand = technique.network()
    for step, batch in enumerate(batches):
        loss = nn.functional.mse_loss(by_hand(batch.x), batch.y)
        assert losses[step] == pytest.approx(float(loss.detach()), abs=1e-7)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= (0.05, 0.1, 0.1)[step] * gradient
    for ours, theirs in zip(prepared.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_clipped_to_one_norm_over_all_weights():
    technique = Descent(learning_rate=1.0, warmup_steps=0, max_grad_norm=1e-3)
    prepared = technique.prepare()
    before = [p.detach().clone() for p in prepared.model.parameters()]
    list(technique.steps(prepared, TrainingJob(batches=(Batch(0),))))
    moved = [p.detach() - b for p, b in zip(prepared.model.parameters(), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_updates_are_adamw():
    technique = Regression(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9, weight_decay=0.1)
    prepared = technique.prepare()
    list(technique.steps(prepared, TrainingJob(batches=(Batch(0), Batch(1)))))
    by_hand = technique.network()
    adamw = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.1, fused=False)
    for batch in (Batch(0), Batch(1)):
        nn.functional.mse_loss(by_hand(batch.x), batch.y).backward()
        adamw.step()
        adamw.zero_grad()
    for ours, theirs in zip(prepared.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_between_steps_nothing_is_left_on():
    technique = Regression()
    prepared = technique.prepare()
    steps = technique.steps(prepared, TrainingJob(batches=(Batch(0), Batch(1), Batch(2))))
    first = next(steps)
    loss = first.outputs[0].clone()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert all(p.grad is None for p in prepared.model.parameters())
    assert first.outputs[0].shape == ()
    assert not first.outputs[0].requires_grad
    assert prepared.model.training
    next(steps)
    assert torch.equal(first.outputs[0], loss)
    steps.close()
    assert not prepared.model.training


class NoWaiting(TorchDispatchMode):
    """Raises where a value is copied to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_inside_a_step():
    technique = Regression()
    prepared = technique.prepare()
    list(technique.steps(prepared, TrainingJob(batches=(Batch(0),))))
    with NoWaiting():
        list(technique.steps(prepared, TrainingJob(batches=(Batch(1), Batch(2)))))
    with pytest.raises(AssertionError), NoWaiting():
        float(torch.ones(()))


def test_phases_come_in_order_and_show_the_gradients():
    technique = Regression()
    prepared = technique.prepare()
    seen: list[tuple[str, int, int]] = []

    class Mark:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            held = prepared.holdings()
            seen.append((self.name, len(list(held["gradients"])), len(list(held["optimizer"]))))

    list(technique.steps(prepared, TrainingJob(batches=(Batch(0),), phase=Mark)))
    # two moments and a step count for each of four weights
    assert seen == [("forward", 0, 0), ("backward", 4, 0), ("optimizer", 0, 12)]


def test_a_component_takes_its_tensors_from_the_weights():
    technique = Regression()
    prepared = technique.prepare()
    network = prepared.model
    network.register_buffer("constants", torch.ones(3))
    outside = torch.ones(2)
    prepared.components["quantisation_constants"] = lambda: [network.constants, outside]
    held = prepared.holdings()
    assert [id(t) for t in held["quantisation_constants"]] == [id(network.constants), id(outside)]
    assert {id(t) for t in held["weights"]} == {id(p) for p in network.parameters()}


def test_holdings_name_adapters_only_where_something_is_frozen():
    technique = Regression()
    network = technique.network()
    everything = technique.trained(network).holdings()
    assert "adapters" not in everything
    assert {id(t) for t in everything["weights"]} == {id(p) for p in network.parameters()}
    first, *rest = network.parameters()
    for parameter in rest:
        parameter.requires_grad_(False)
    held = technique.trained(network, helpers=(nn.Linear(2, 2),)).holdings()
    assert [id(t) for t in held["adapters"]] == [id(first)]
    assert {id(t) for t in held["weights"]} == {id(p) for p in rest}
    assert len(list(held["helper_weights"])) == 2


def test_closed_holds_neither_gradients_nor_moments():
    technique = Regression()
    prepared = technique.prepare()
    list(technique.steps(prepared, TrainingJob(batches=(Batch(0),))))
    prepared.close()
    held = prepared.holdings()
    assert list(held["gradients"]) == list(held["optimizer"]) == []


def test_training_runs_all_steps_in_order():
    technique = Regression()
    losses = Questions(steps=5).train(technique, technique.prepare(), {}, 0).losses
    again = technique.prepare()
    job = TrainingJob(batches=tuple(Batch(number) for number in range(5)))
    assert losses == [float(step.outputs[0]) for step in technique.steps(again, job)]


class Slow(Regression):
    """Every step takes a second of a clock that nothing else moves."""

    clock: Any

    def batch_loss(self, prepared: TrainedPrepared, batch: Any) -> Tensor:
        self.clock.now += 1.0
        return super().batch_loss(prepared, batch)


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("limit", "steps"), [(math.inf, 6), (2.5, 2), (2.0, 2), (0.5, 1), (100.0, 6)])
def test_a_training_ends_before_a_step_that_would_pass_its_seconds(
    limit: float, steps: int, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    technique, seen = Slow(clock=clock), []

    def watch(done: int, share: float) -> None:
        clock.now += 50.0  # looking is no training
        seen.append((done, share))

    course = Questions(steps=6).train(technique, technique.prepare(), {}, 0, watch, limit)
    assert len(course.losses) == steps
    assert course.seconds == steps
    assert seen[:-1] == [(done, max(done / 6, done / limit)) for done in range(1, steps)]
    assert seen[-1][0] == steps
    assert seen[-1][1] == 1.0
    whole = Questions(steps=6).train(Regression(), Regression().prepare(), {}, 0).losses
    assert course.losses == whole[:steps]


@pytest.mark.parametrize(
    ("count", "steps", "due"), [(2, 8, [4, 8]), (3, 9, [3, 6, 9]), (3, 8, [3, 6, 8]), (4, 2, [1, 2]), (1, 5, [5])]
)
def test_looks_are_spread_evenly_and_the_last_is_at_the_end(count: int, steps: int, due: list[int]):
    looks = Looks(count)
    assert [step for step in range(1, steps + 1) if looks.due(step / steps)] == due


def test_looks_are_denser_at_the_beginning():
    looks = Looks(3, power=2)
    assert [step for step in range(1, 19) if looks.due(step / 18)] == [2, 8, 18]


def test_divergence_names_the_step_and_keeps_the_losses():
    technique = Regression()
    with pytest.raises(Diverged, match="step 3") as caught:
        Questions(steps=6, bad=3).train(technique, technique.prepare(), {}, 0)
    assert caught.value.step == 3
    assert len(caught.value.losses) == 3
    exploding = Regression(blow_up=True)
    with pytest.raises(Diverged, match="step 0"):
        Questions(steps=6).train(exploding, exploding.prepare(), {}, 0)


def test_bursts_are_distinct_and_go_on_in_the_schedule():
    workload = Questions(burst_steps=3)
    jobs = [workload.burst({}, index, 0, "cpu") for index in (-1, 0, 1)]
    assert [job.first_step for job in jobs] == [0, 3, 6]
    assert all(len(job.batches) == 3 for job in jobs)


def test_order_shuffles_every_epoch_anew_and_depends_on_the_seed_alone():
    rows = [row for batch in order(10, 4, seed=5, first=0, steps=10) for row in batch]
    epochs = [rows[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(order(10, 4, 5, 0, 10)) == list(order(10, 4, 5, 0, 10))
    assert list(order(10, 4, 5, 0, 10)) != list(order(10, 4, 6, 0, 10))


@pytest.mark.parametrize("first", range(8))
def test_order_is_one_sequence_wherever_it_is_entered(first: int):
    whole = list(order(10, 4, seed=1, first=0, steps=12))
    assert list(order(10, 4, seed=1, first=first, steps=4)) == whole[first : first + 4]


def test_batches_larger_than_the_data_run_over_several_epochs():
    (batch,) = order(3, 7, seed=0, first=0, steps=1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool])
def test_checksum_sees_one_bit(dtype: torch.dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone().T) == before
    bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    bits[1, 1] ^= 1
    assert checksum(tensor) != before


def test_gate_says_which_frozen_tensor_changed():
    network = Regression().network()
    network[0].requires_grad_(False)
    helper = nn.Linear(2, 2).requires_grad_(False)
    prepared = Prepared(network, (helper,))
    before = frozen(prepared)
    assert set(before) == {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}
    network[2].weight.data += 1
    assert all(gate.passed for gate in training_gates(before, frozen(prepared), [1.0]))
    helper.weight.data[0, 0] += 1e-6
    finite, same = training_gates(before, frozen(prepared), [1.0, float("nan")])
    assert not finite.passed
    assert not same.passed
    assert "1 of 4" in same.detail
    assert "1.weight" in same.detail


def test_no_frozen_gate_where_everything_is_trained():
    prepared = Prepared(Regression().network())
    assert [gate.name for gate in training_gates(frozen(prepared), frozen(prepared), [])] == ["finite"]
