"""What preference workloads share: pairs become batches, and a trained policy is scored on held-out ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import stats
from bench.errors import Unsupported
from bench.families.completions import completion_logprobs, picked_logprobs
from bench.families.preference import Pair, Preference, PreferenceBatch, PreferenceJob, collate
from bench.families.rollout import Rollout
from bench.families.training import Looks, TrainedPrepared, TrainingWorkload, frozen, order, training_gates
from bench.models import Source
from bench.technique import Prepared, Technique
from bench.workload import Built, Gate, Quality, Work

ENDED_EARLY = {
    "training ended before its last step, as another step would have passed its seconds: "
    "another machine ends it elsewhere": (
        "the record has its `steps`; as many in workload.steps, without a time budget, repeat it"
    )
}

PAID_BEFORE = {
    "its reference was computed before the first step: one pass over every text, which the time of no step holds": (
        "reference=adapters_off or copy computes it in every step"
    )
}


class PreferenceWorkload(TrainingWorkload):
    """Base of the preference workloads.

    `build` gives `train` and `heldout`, lists of pairs, and what the untrained model makes of them:
    `train_reference` and `reference` (`reference_logprobs`).
    """

    family: ClassVar[str] = "preference"
    smallest: ClassVar[Mapping[str, int]] = {"batch_size": 2, "steps": 3, "items": 4, "checkpoints": 1}

    steps: int = Field(default=16, ge=1)
    """Optimiser steps of the quality pass [steps]."""
    items: int = Field(default=24, ge=1)
    """Held-out pairs that are scored."""
    checkpoints: int = Field(default=2, ge=1)
    """How often the policy is looked at, evenly over the training, the last time at its end."""

    @property
    def pair_tokens(self) -> int:
        """About how long the two texts of a pair are together, for the plan [tokens]."""
        return 512

    @property
    def train_pairs(self) -> int:
        """About how many pairs there are to train on, for the plan."""
        return self.steps * self.batch_size

    def rollout(self, built: Built, device: str) -> Rollout | None:
        """How completions are sampled and what they are worth; None where nothing says what they are worth."""
        return None

    def job(self, built: Built, first: int, count: int, seed: int, device: str) -> PreferenceJob:
        train, known = built["train"], built["train_reference"]
        batches = tuple(
            collate([train[row] for row in rows], device, [known[row] for row in rows])
            for rows in order(len(train), self.batch_size, seed, first, count)
        )
        return PreferenceJob(batches=batches, first_step=first, seed=seed, rollout=self.rollout(built, device))

    def heldout(self, pairs: Sequence[Pair], device: str) -> list[PreferenceBatch]:
        """Pairs in their order, in batches of the training's size; the same ones for every arm and the reference."""
        return [collate(pairs[i : i + self.batch_size], device) for i in range(0, len(pairs), self.batch_size)]

    @torch.no_grad()
    def reference_logprobs(self, model: nn.Module, pairs: Sequence[Pair], device: str) -> list[list[float]]:
        """What a model makes of pairs: log-probabilities [chosen, rejected] of each."""
        scored = [completion_logprobs(model, batch.texts) for batch in self.heldout(pairs, device)]
        return _by_pair(scored).tolist()

    def fitted(self, technique: Technique, prepared: Prepared, built: Built) -> Built:
        """As built; where a policy that reads its reference from the pairs does not start as the untrained model that
        scored them, by its weights or by how it computes, what its own start makes of them."""
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        if not technique.reference_known or (prepared.compute_dtype is None and not technique.own_reference):
            return built
        train = self.heldout(built["train"], str(next(prepared.model.parameters()).device))
        known = _by_pair([technique.logprobs(prepared, batch.texts) for batch in train])
        return {**built, "train_reference": known.tolist()}

    def work(self) -> tuple[Work, Work, Work]:
        step = Work(train=self.batch_size * self.pair_tokens)
        scored = Work(prefill=(1 + self.checkpoints) * self.items * self.pair_tokens)
        reference = Work(prefill=(self.train_pairs + self.items) * self.pair_tokens)
        return reference, step.times(self.burst_steps), step.times(self.steps) + scored

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        return self.trained(technique, prepared, built, seed, source)

    def trained(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        watch: Callable[[int, float], None] | None = None,
        limit: float = math.inf,
    ) -> Quality:
        """Held-out pairs under the policy and the reference, after the whole training on the seed's order.

        Args:
            watch: as `train` has it.
            limit: of the training's steps [s].

        Raises:
            Diverged: a loss is not finite.
            Unsupported: the technique trains nothing, so it makes of pairs what the reference makes of them.
        """
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        if not technique.trains:
            raise Unsupported("nothing is trained, and this workload scores pairs alone: use one with a reward")
        pairs: list[Pair] = built["heldout"]
        batches = self.heldout(pairs, source.device)
        start = torch.tensor(built["reference"])  # (items, 2)
        if technique.own_reference:
            start = _by_pair(
                [picked_logprobs(technique.reference_logits(prepared, b.texts), b.texts).sum(-1) for b in batches]
            )
        before = _by_pair([technique.logprobs(prepared, batch.texts) for batch in batches])
        bits = frozen(prepared)
        looks, after = Looks(self.checkpoints), before
        seen = [(0, _scores(before - start))]

        def look(step: int, share: float) -> None:
            nonlocal after
            if looks.due(share):
                # training goes on as if nobody had looked
                prepared.model.eval()
                after = _by_pair([technique.logprobs(prepared, batch.texts) for batch in batches])
                prepared.model.train(technique.train_mode)
                seen.append((step, _scores(after - start)))
            if watch is not None:
                watch(step, share)

        course = self.train(technique, prepared, built, seed, look, limit)
        steps, scores = len(course.losses), seen[-1][1]
        margin = scores["preference_margin"]
        lengths = torch.tensor([[len(pair["chosen"]), len(pair["rejected"])] for pair in pairs])
        return Quality(
            metrics={**scores, **{f"{side}_nll": values.tolist() for side, values in _per_token(after, lengths)}},
            curves={
                "loss": [[float(step), loss] for step, loss in enumerate(course.losses)],
                **{name: [[float(step), stats.fmean(of[name])] for step, of in seen] for name in scores},
            },
            half_widths={name: [[None, stats.half_interval(of[name])] for _, of in seen] for name in scores},
            counts={
                **{f"{side}_nll_before": float(values.mean()) for side, values in _per_token(before, lengths)},
                "steps": float(steps),
                "epochs": steps * self.batch_size / len(built["train"]),
                **{f"{name}_per_update": count / steps for name, count in course.counts.items()},
                **length_statistics(lengths, margin),
            },
            gates=[
                starts_at_reference(before, start, pairs, source.torch_dtype),
                *training_gates(bits, frozen(prepared), after.flatten().tolist()),
            ],
            notes={
                **(ENDED_EARLY if steps < self.steps else {}),
                **(PAID_BEFORE if technique.reference_known else {}),
            },
            train_seconds=course.seconds,
        )


def _by_pair(scored: Sequence[Tensor]) -> Tensor:
    """Log-probabilities `(2 * pairs,)` of batches -> `(pairs, 2)` on the CPU: chosen, rejected."""
    return torch.cat([rows.float().view(2, -1).T for rows in scored]).cpu()


def _per_token(logprobs: Tensor, lengths: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Negative log-likelihoods of the two sides of pairs, from what is `(pairs, 2)`: `(pairs,)` each [nat/token]."""
    yield from zip(("chosen", "rejected"), (-logprobs / lengths).unbind(1), strict=True)


def _scores(gained: Tensor) -> dict[str, list[float]]:
    """Metrics of each pair, of what its texts gained over the reference, `(pairs, 2)` [nat]."""
    margin: list[float] = (gained[:, 0] - gained[:, 1]).tolist()
    return {
        "preference_accuracy": [0.5 + 0.5 * ((m > 0) - (m < 0)) for m in margin],
        "preference_margin": margin,
        "chosen_gain": gained[:, 0].tolist(),
        "rejected_gain": gained[:, 1].tolist(),
    }


def length_statistics(lengths: Tensor, margin: Sequence[float]) -> dict[str, float]:
    """How long the sides of pairs are, and whether the policy's margin follows their difference in length.

    Args:
        lengths: of the chosen and the rejected completion, `(pairs, 2)` [tokens].
        margin: per pair [nat].

    Returns:
        Means; `chosen_longer`, the share of pairs whose chosen completion is the longer one, ties half; and
        `margin_length_correlation` (Pearson), left out where either side does not vary.
    """
    longer = (lengths[:, 0] - lengths[:, 1]).double()
    found = {
        "chosen_tokens": float(lengths[:, 0].double().mean()),
        "rejected_tokens": float(lengths[:, 1].double().mean()),
        "chosen_longer": float((0.5 + 0.5 * longer.sign()).mean()),
    }
    differences = longer.tolist()
    if len(set(differences)) > 1 and len(set(margin)) > 1:
        found["margin_length_correlation"] = statistics.correlation(differences, list(margin))
    return found


def starts_at_reference(policy: Tensor, reference: Tensor, pairs: Sequence[Pair], dtype: torch.dtype) -> Gate:
    """Before training the policy is the reference: otherwise the loss does not start at ln 2.

    Args:
        policy: log-probabilities `(pairs, 2)` [nat].
        reference: the same of the reference.
    """
    # rounding of logits in 16 bits; in float32 what another order of summation may do
    allowed = max(4 * torch.finfo(dtype).eps, 1e-4)
    lengths = torch.tensor([[len(pair["chosen"]), len(pair["rejected"])] for pair in pairs])
    apart = float(((policy - reference).abs() / lengths).max())
    detail = f"policy and reference are {apart:.2g} nat per token apart before training, {allowed:.2g} allowed"
    return Gate("starts_at_reference", apart <= allowed, detail)
