"""MeZO: two forward passes tell along which random direction the loss falls; no backward pass, no gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.claim import Claim, about, at_least
from bench.errors import Unsupported
from bench.families.finetuning import Finetuning
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from bench.technique import Phase
from techniques.finetuning.core.precision import Precision, held_in


class Direction(NamedTuple):
    """The random direction z of one step, `(weights,)`, made anew from its seed whenever it is needed."""

    seed: int
    step: int

    def of(self, place: int, parameter: Tensor) -> Tensor:
        """The part of z that belongs to the parameter at a place in the model's list, of its shape and dtype."""
        generator = torch.Generator(parameter.device)
        generator.manual_seed(((self.seed * 1_000_003 + self.step) * 1_000_003 + place) % 2**63)
        return torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)


@register
class Mezo(Finetuning):
    """theta <- theta - eta (L(theta + eps z) - L(theta - eps z)) / (2 eps) z, with z from a seed (algorithm 1).

    Differs from the paper: its code adds eps z to all weights in place and takes it away again, and what rounding
    leaves behind drifts: by 4 % of the weights in a hundred steps of bfloat16. Here a module is handed theta + eps z
    while it computes and its own weights afterwards, so a step's only rounding is that of its update; the price is one
    copy of the largest module's weights. Gradients are not clipped: there are none.
    """

    source: ClassVar[str] = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes, algorithm 1"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="memory_of_inference",
            statement="Training holds what inference holds: the weights, and no gradients or moments.",
            source="Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes, abstract",
            expression="held_memory(mezo) / held.weights(mezo)",
            expected=about(1.0, 0.01),
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="memory_below_full",
            statement="Finetuning by backpropagation needs up to 12 times the memory.",
            source=(
                "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes, abstract (30B in the "
                "memory of 2.7B)"
            ),
            expression="peak_memory(full) / peak_memory(mezo)",
            expected=at_least(10.8),
            conditions={"device": "cuda", "model": "*opt-13b*|*opt-30b*"},
            out_of_reach="the abstract does not say with which batch and length",
            free=("learning_rate", "precision"),
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
    )
    train_mode: ClassVar[bool] = False  # the loss must be the same function in both passes

    learning_rate: float = Field(default=1e-6, gt=0)
    """The paper's for all weights is 1e-6 or 1e-7."""
    epsilon: float = Field(default=1e-3, gt=0)
    """How far weights are moved; the paper's for all weights."""
    precision: Precision = "pure"
    """`pure`: the run's dtype, as for inference; `mixed`: weights in float32, which keep small updates."""

    def prepare(self, sources: Sources) -> TrainedPrepared:
        model, compute_dtype = held_in(sources.target, self.precision)
        return TrainedPrepared(model, state=Direction(sources.seed, 0), compute_dtype=compute_dtype)

    @torch.no_grad()
    def update(
        self, prepared: TrainedPrepared, trained: list[nn.Parameter], batch: Any, rate: float, phase: Phase
    ) -> Tensor:
        direction: Direction = prepared.state
        prepared.state = direction._replace(step=direction.step + 1)
        with phase("forward"), prepared.precision():
            with moved(prepared.model, direction, self.epsilon):
                above = self.batch_loss(prepared, batch)
            with moved(prepared.model, direction, -self.epsilon):
                below = self.batch_loss(prepared, batch)
        slope = (above - below) / (2 * self.epsilon)  # (), on the device
        with phase("optimizer"):
            for place, parameter in enumerate(trained):
                parameter.mul_(1 - rate * self.weight_decay)
                z = direction.of(place, parameter)
                parameter.addcmul_(z, slope.to(z.dtype), value=-rate)
        return (above + below) / 2


@contextlib.contextmanager
def moved(model: nn.Module, direction: Direction, epsilon: float) -> Iterator[None]:
    """Within, every module computes with theta + epsilon z; its own weights are the same bits before and after.

    Raises:
        Unsupported: a module's weights are used by another one, which would compute without the z.
    """
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    met: set[int] = set()
    lent: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def lend(module: nn.Module, _: Any) -> None:
        lent[module] = [(parameter, parameter.data) for parameter in module.parameters(recurse=False)]
        for parameter, own in lent[module]:
            place = places[id(parameter)]
            met.add(place)
            parameter.data = own.add(direction.of(place, own), alpha=epsilon)

    def take_back(module: nn.Module, *_: Any) -> None:
        for parameter, own in lent.pop(module):
            parameter.data = own

    hooks = [module.register_forward_pre_hook(lend) for module in model.modules()]
    hooks += [module.register_forward_hook(take_back) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(lent):  # an error left them in the middle of their computation
            take_back(module)
    if len(met) < len(places):
        raise Unsupported(f"{len(places) - len(met)} of this model's weights are used outside of their own module")
