"""Training: what the families that change a model's weights share.

The optimisation loop is the same for all of them: forward, backward, clipping, update. A technique says which
weights are trained and what the loss is; a family says what a batch is and how a trained model is scored.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.errors import Diverged
from bench.technique import Job, Phase, Prepared, Step, Technique
from bench.workload import Built, Gate, Workload


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """Take one optimiser step per batch."""

    batches: tuple[Any, ...]
    """On the device already; each family has its own type."""
    first_step: int = 0
    """Place of the first batch in the schedule of the learning rate [steps]."""


@dataclass
class TrainedPrepared(Prepared):
    """A model, the optimizer of its trainable weights, and the precision it computes in."""

    optimizer: torch.optim.Optimizer | None = None
    compute_dtype: torch.dtype | None = None
    """Autocast to it; None: compute in the weights' own."""
    facts: dict[str, float] = field(default_factory=dict)
    """What only the technique can know of its model, for the record: bits per parameter ..."""
    merge: Callable[[], object] | None = None
    """Adds what was trained to the frozen weights, in place; None where that cannot be."""

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def is_adapted(self) -> bool:
        """Whether only a part of the weights is trained."""
        return any(not p.requires_grad for p in self.model.parameters())

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Every forward pass of the model goes inside; never held across a `yield`."""
        if self.compute_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.compute_dtype)

    def holdings(self) -> Mapping[str, Iterable[Tensor]]:
        held = dict(super().holdings())
        trained = self.trainable
        if self.is_adapted:
            own = {id(p) for p in trained}
            held["weights"] = [t for t in held["weights"] if id(t) not in own]
            held["adapters"] = [*trained]
        held["gradients"] = [p.grad for p in trained if p.grad is not None]
        states = self.optimizer.state.values() if self.optimizer else ()
        held["optimizer"] = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return held

    def close(self) -> None:
        super().close()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.optimizer = None
        self.merge = None


class Training(Technique):
    """Base of the two families that train."""

    trains: ClassVar[bool] = True
    train_mode: ClassVar[bool]
    """Whether modules are in training mode within a step: dropout and checkpointing act."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """After the warm-up it stays constant."""
    warmup_steps: int = Field(default=3, ge=0)
    """Steps over which the learning rate rises linearly [steps]."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm, all trainable weights together."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, as in AdamW."""

    @abstractmethod
    def batch_loss(self, prepared: TrainedPrepared, batch: Any) -> Tensor:
        """Loss `()` of one batch, in float32, with its graph."""

    def tokens(self, batch: Any) -> int:
        """Target tokens that the loss of a batch counts [tokens]."""
        count: int = batch.tokens
        return count

    def counts(self, batch: Any) -> Mapping[str, int]:
        """What a step on this batch costs that the harness cannot see; nothing by default."""
        return {}

    def optimizer_over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW (Loshchilov and Hutter 2019) over the trainable weights."""
        fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.999), weight_decay=self.weight_decay, fused=fused
        )

    def trained(
        self,
        model: nn.Module,
        helpers: tuple[nn.Module, ...] = (),
        compute_dtype: torch.dtype | None = None,
    ) -> TrainedPrepared:
        """A model ready for the loop; its weights that require gradients are trained."""
        prepared = TrainedPrepared(model, helpers, compute_dtype=compute_dtype)
        prepared.optimizer = self.optimizer_over(prepared.trainable)
        return prepared

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear to `learning_rate`, then constant."""
        return self.learning_rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def steps(self, prepared: TrainedPrepared, job: TrainingJob) -> Generator[Step]:
        trained = prepared.trainable
        prepared.model.train(self.train_mode)
        try:
            for step, batch in enumerate(job.batches, start=job.first_step):
                loss = self.update(prepared, trained, batch, self.rate(step), job.phase)
                yield Step("train", self.tokens(batch), (loss,), self.counts(batch))
        finally:
            prepared.model.eval()

    def update(
        self, prepared: TrainedPrepared, trained: list[nn.Parameter], batch: Any, rate: float, phase: Phase
    ) -> Tensor:
        """One optimiser step; the loss before it, `()`. Nothing waits for the device.

        Override it where a step is not a forward and a backward pass.
        """
        optimizer = prepared.optimizer
        assert optimizer is not None
        with phase("forward"), prepared.precision():
            loss = self.batch_loss(prepared, batch)
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()


@dataclass
class Looks:
    """Looks at a training, evenly over it or denser at its beginning, the last one at its end."""

    count: int
    taken: int = 0
    power: float = 1.0
    """They lie at even shares of the training to this power."""

    def due(self, share: float) -> bool:
        """Whether a look is to be taken now; asked after every step.

        Args:
            share: of the training that is done, as `TrainingWorkload.train` tells.
        """
        reached = int(share ** (1 / self.power) * self.count + 1e-9)  # a third three times is a whole
        self.taken, before = max(self.taken, reached), self.taken
        return reached > before


@dataclass(frozen=True)
class Course:
    """A training from its first step to its last."""

    losses: list[float]
    """Before each step."""
    seconds: float
    """Of its steps, without what was looked at between them [s]."""
    counts: Mapping[str, int]
    """What the steps counted, all together."""


class TrainingWorkload(Workload):
    """Base of the two families' workloads: a burst is a few steps, a quality pass the whole training."""

    batch_size: int = Field(default=4, ge=1)
    """Sequences, or pairs, per optimiser step."""
    steps: int = Field(default=30, ge=1)
    """Optimiser steps of the quality pass [steps]."""
    burst_steps: int = Field(default=2, ge=1)
    """Optimiser steps of one timed burst [steps]."""
    items: int = Field(default=16, ge=1)
    """Held-out sequences, or pairs, that are scored."""

    @abstractmethod
    def job(self, built: Built, first: int, count: int, seed: int, device: str) -> TrainingJob:
        """The batches number `first` to `first + count` of the seed's order."""

    def burst(self, built: Built, index: int, seed: int, device: str) -> TrainingJob:
        # index -1 is the warm-up, so it takes the first batches
        return self.job(built, (index + 1) * self.burst_steps, self.burst_steps, seed, device)

    def train(
        self,
        technique: Training,
        prepared: TrainedPrepared,
        built: Built,
        seed: int,
        watch: Callable[[int, float], None] | None = None,
        limit: float = math.inf,
    ) -> Course:
        """The whole training.

        Args:
            watch: called after every step with the number of steps done, and which share of the training they are: of
                its steps or of its seconds, whichever is the larger one.
            limit: it ends when another step like those before would have taken it longer [s].

        Raises:
            Diverged: a loss is not finite; it carries the losses so far.
        """
        device = str(next(prepared.model.parameters()).device)
        losses: list[float] = []
        counts = Counter[str]()
        seconds = 0.0
        job = self.job(built, 0, self.steps, seed, device)
        with contextlib.closing(technique.steps(prepared, job)) as steps:
            ended = False
            while not ended:
                begin = time.perf_counter()
                step = next(steps, None)
                if step is None:
                    break
                loss = float(step.outputs[0])  # waits for the device
                seconds += time.perf_counter() - begin
                if not math.isfinite(loss):
                    raise Diverged(len(losses), losses)
                losses.append(loss)
                counts.update(step.counts)
                ended = seconds / len(losses) * (len(losses) + 1) > limit
                if watch is not None:
                    watch(len(losses), 1.0 if ended else max(len(losses) / self.steps, seconds / limit))
        return Course(losses, seconds, counts)


def order(count: int, batch_size: int, seed: int, first: int, steps: int) -> Iterator[list[int]]:
    """Row numbers of the batches `first` to `first + steps`: every epoch is shuffled anew.

    It depends on the seed alone, so every arm sees the same rows in the same order.

    Args:
        count: rows there are.
    """
    places = range(first * batch_size, (first + steps) * batch_size)
    shuffled = itertools.chain.from_iterable(
        torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        for epoch in range(places.start // count, places.stop // count + 1)
    )
    begin = places.start % count
    rows = itertools.islice(shuffled, begin, begin + len(places))
    for _ in range(steps):
        yield list(itertools.islice(rows, batch_size))


def frozen(prepared: Prepared) -> dict[str, int]:
    """Name -> checksum of every tensor of the networks that must not change."""
    return {
        f"{number}.{name}": checksum(tensor)
        for number, network in enumerate((prepared.model, *prepared.helpers))
        for name, tensor in network.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not tensor.requires_grad
    }


def checksum(tensor: Tensor) -> int:
    """Sum over the bits of a tensor, read as integers of its element size: equal for equal bits."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().view(integers).sum(dtype=torch.int64))


def training_gates(before: Mapping[str, int], after: Mapping[str, int], values: Iterable[float]) -> list[Gate]:
    """`finite`, of the held-out values after training, and `frozen`, of the checksums, where anything was."""
    finite = all(map(math.isfinite, values))
    gates = [Gate("finite", finite, "held-out log-likelihoods after training are finite")]
    if before:
        changed = [name for name, bits in before.items() if after[name] != bits]
        detail = f"{len(before)} frozen tensors, bit for bit as before training"
        if changed:
            detail = f"{len(changed)} of {len(before)} frozen tensors changed: {', '.join(changed[:3])}"
        gates.append(Gate("frozen", not changed, detail))
    return gates
