"""Preference: a model learns from pairs of completions which of the two is wanted.

The loop, the policy's start and the way log-probabilities are summed are shared; a technique gives the loss.
Dropout is off in policy and reference alike.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.families.training import (
    TrainedPrepared,
    Training,
    TrainingJob,
    TrainingWorkload,
    frozen,
    order,
    training_gates,
)
from bench.models import Source, Sources
from bench.technique import Axis, Prepared, Technique
from bench.workload import Built, Gate, Quality, Work

IGNORED = -100
"""What `cross_entropy` is told to leave out."""
PAD = 0
"""Any id does: padding is masked."""


class Pair(TypedDict):
    """One prompt and its two completions, as ids.

    They are joined as ids, never tokenised anew. A begin-of-text id stands in the prompt only, an end-of-text id
    only at the end of a completion that ends there.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Completions:
    """Texts whose completions all begin at one column: prompts padded left, completions padded right."""

    ids: Tensor
    """`(rows, seq)`, int64."""
    completion: Tensor
    """Which of the last columns are a completion's tokens, `(rows, completion)`, bool."""
    attention: Tensor | None = None
    """Which columns are text, `(rows, seq)`, bool; None where nothing is padded."""

    def rows(self, count: int) -> Completions:
        """The first `count` rows."""
        attention = None if self.attention is None else self.attention[:count]
        return Completions(self.ids[:count], self.completion[:count], attention)


@dataclass(frozen=True)
class PreferenceBatch:
    """What one optimiser step is trained on."""

    texts: Completions
    """The chosen texts of all pairs, then the rejected ones: `2 * pairs` rows."""
    pairs: int
    chosen_tokens: int
    """In the chosen completions [tokens]."""
    rejected_tokens: int
    """In the rejected completions [tokens]."""
    reference: Tensor | None = None
    """Log-probability of every completion under the reference, `(2 * pairs,)`, where it is known before."""

    @property
    def chosen(self) -> Completions:
        return self.texts.rows(self.pairs)

    @property
    def tokens(self) -> int:
        """Targets of both completions [tokens]."""
        return self.chosen_tokens + self.rejected_tokens


@dataclass(frozen=True, kw_only=True)
class PreferenceJob(TrainingJob):
    """Learn each batch of pairs in turn."""

    batches: tuple[PreferenceBatch, ...]


def collate(pairs: Sequence[Pair], device: str) -> PreferenceBatch:
    """Pad pairs to one batch."""
    chosen = [(pair["prompt"], pair["chosen"]) for pair in pairs]
    rejected = [(pair["prompt"], pair["rejected"]) for pair in pairs]
    rows = chosen + rejected
    left = max(len(prompt) for prompt, _ in rows)
    right = max(len(completion) for _, completion in rows)
    ids, mask = [], []
    for prompt, completion in rows:
        before, behind = left - len(prompt), right - len(completion)
        ids.append([PAD] * before + prompt + completion + [PAD] * behind)
        mask.append([False] * before + [True] * (len(prompt) + len(completion)) + [False] * behind)
    text = torch.tensor(mask)
    attention = None if bool(text.all()) else text.to(device)
    texts = Completions(torch.tensor(ids, device=device), text[:, left:].to(device), attention)
    return PreferenceBatch(
        texts,
        pairs=len(pairs),
        chosen_tokens=sum(len(completion) for _, completion in chosen),
        rejected_tokens=sum(len(completion) for _, completion in rejected),
    )


def completion_logprobs(model: nn.Module, texts: Completions) -> Tensor:
    """Log-probability of each completion behind its prompt, summed over its tokens, `(rows,)`, float32.

    One forward pass for all rows; logits are made for the completions only.
    """
    width = texts.completion.shape[1]
    padded = {}
    if texts.attention is not None:
        positions = (texts.attention.long().cumsum(-1) - 1).clamp(min=0)
        padded = {"attention_mask": texts.attention, "position_ids": positions}
    # the column before the completion predicts its first token: (rows, 1 + completion, vocabulary)
    logits = model(input_ids=texts.ids, use_cache=False, logits_to_keep=width + 1, **padded).logits[:, :-1]
    targets = texts.ids[:, -width:].masked_fill(~texts.completion, IGNORED)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape).sum(-1)


class Preference(Training):
    """Base of the preference techniques."""

    family: ClassVar[str] = "preference"
    primary: ClassVar[Mapping[Axis, str]] = {
        "quality": "preference_accuracy",
        "latency": "time_per_step",
        "memory": "peak_memory",
    }
    train_mode: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, sources: Sources) -> TrainedPrepared:
        """Build the policy; before the first step it is the reference."""

    @abstractmethod
    def loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        """Loss `()` of one batch, with its graph."""

    @torch.no_grad()
    def logprobs(self, prepared: TrainedPrepared, texts: Completions) -> Tensor:
        """Log-probability of each completion under the policy, `(rows,)`."""
        with prepared.precision():
            return completion_logprobs(prepared.model, texts)


class PreferenceWorkload(TrainingWorkload):
    """Base of the preference workloads.

    `build` gives `train` and `heldout`, lists of pairs, and `reference`, what the untrained model makes of the
    held-out ones (`reference_logprobs`).
    """

    family: ClassVar[str] = "preference"
    smallest: ClassVar[Mapping[str, int]] = {"batch_size": 2, "steps": 3, "items": 4}

    steps: int = Field(default=16, ge=1)
    """Optimiser steps of the quality pass [steps]."""
    items: int = Field(default=24, ge=1)
    """Held-out pairs that are scored."""

    @property
    def pair_tokens(self) -> int:
        """About how long the two texts of a pair are together, for the plan [tokens]."""
        return 512

    def job(self, built: Built, first: int, count: int, seed: int, device: str) -> PreferenceJob:
        train = built["train"]
        batches = tuple(
            collate([train[row] for row in rows], device)
            for rows in order(len(train), self.batch_size, seed, first, count)
        )
        return PreferenceJob(batches=batches, first_step=first, seed=seed)

    def heldout(self, pairs: Sequence[Pair], device: str) -> list[PreferenceBatch]:
        """Held-out pairs in batches of the training's size; the same ones for every arm and the reference."""
        return [collate(pairs[i : i + self.batch_size], device) for i in range(0, len(pairs), self.batch_size)]

    @torch.no_grad()
    def reference_logprobs(self, model: nn.Module, pairs: Sequence[Pair], device: str) -> list[list[float]]:
        """What a model makes of pairs: log-probabilities [chosen, rejected] of each."""
        scored = [completion_logprobs(model, batch.texts) for batch in self.heldout(pairs, device)]
        return _by_pair(scored).tolist()

    def work(self) -> tuple[Work, Work, Work]:
        step = Work(train=self.batch_size * self.pair_tokens)
        scored = Work(prefill=2 * self.items * self.pair_tokens)
        reference = Work(prefill=self.items * self.pair_tokens)
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
        """Held-out pairs under the policy and the reference, after the whole training on the seed's order.

        Raises:
            Diverged: a loss is not finite.
        """
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        pairs: list[Pair] = built["heldout"]
        batches = self.heldout(pairs, source.device)
        start = torch.tensor(built["reference"])  # (items, 2)
        before = _by_pair([technique.logprobs(prepared, batch.texts) for batch in batches])
        bits = frozen(prepared)
        losses = self.train(technique, prepared, built, seed)
        after = _by_pair([technique.logprobs(prepared, batch.texts) for batch in batches])
        gained = after - start
        margin: list[float] = (gained[:, 0] - gained[:, 1]).tolist()
        lengths = torch.tensor([len(pair["chosen"]) for pair in pairs])
        return Quality(
            metrics={
                "preference_accuracy": [0.5 + 0.5 * ((m > 0) - (m < 0)) for m in margin],
                "preference_margin": margin,
                "chosen_nll": (-after[:, 0] / lengths).tolist(),
            },
            curves={"loss": [[float(step), loss] for step, loss in enumerate(losses)]},
            counts={
                "chosen_nll_before": float((-before[:, 0] / lengths).mean()),
                "steps": float(self.steps),
                "epochs": self.steps * self.batch_size / len(built["train"]),
            },
            gates=[
                starts_at_reference(before, start, pairs, source.torch_dtype),
                *training_gates(bits, frozen(prepared), after.flatten().tolist()),
            ],
        )


def _by_pair(scored: Sequence[Tensor]) -> Tensor:
    """Log-probabilities `(2 * pairs,)` of batches -> `(pairs, 2)` on the CPU: chosen, rejected."""
    return torch.cat([rows.float().view(2, -1).T for rows in scored]).cpu()


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
