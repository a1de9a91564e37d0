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
from torch import Tensor

from bench.errors import Unsupported
from bench.families.completions import Completions, completion_logits, laid_out, picked_logprobs
from bench.families.rollout import Rollout, sample
from bench.families.training import TrainedPrepared, Training, TrainingJob
from bench.models import Sources
from bench.technique import Axis


class Pair(TypedDict):
    """One prompt and its two completions, as ids.

    They are joined as ids, never tokenised anew. A begin-of-text id stands in the prompt only, an end-of-text id
    only at the end of a completion that ends there.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class PreferenceBatch:
    """What one optimiser step is trained on."""

    texts: Completions
    """The chosen texts of all pairs, then the rejected ones: `2 * pairs` rows."""
    pairs: int
    longest_chosen: int
    """Of the chosen completions [tokens]."""
    chosen_tokens: int
    """In the chosen completions [tokens]."""
    rejected_tokens: int
    """In the rejected completions [tokens]."""
    prompts: tuple[list[int], ...] = ()
    """The pairs' prompts, as ids, for techniques that write completions of their own."""
    reference: Tensor | None = None
    """Log-probability of every completion under the untrained model, `(2 * pairs,)`, where it is known before."""
    held_to: Tensor | None = None
    """The same under what the technique is held to, in a step that has computed it."""
    anchor: Tensor | None = None
    """How far the policy is from that on average, `()`, in a step that has estimated it [nat]."""

    @property
    def chosen(self) -> Completions:
        return self.texts.rows(slice(self.pairs), self.longest_chosen)

    @property
    def tokens(self) -> int:
        """Targets of both completions [tokens]."""
        return self.chosen_tokens + self.rejected_tokens


@dataclass(frozen=True, kw_only=True)
class PreferenceJob(TrainingJob):
    """Learn each batch of pairs in turn."""

    batches: tuple[PreferenceBatch, ...]
    rollout: Rollout | None = None
    """How completions are sampled and what they are worth; None where nothing says what they are worth."""


def collate(pairs: Sequence[Pair], device: str, reference: Sequence[Sequence[float]] | None = None) -> PreferenceBatch:
    """Pad pairs to one batch.

    Args:
        reference: log-probabilities [chosen, rejected] of each pair under the reference, where they are known.
    """
    sides = [[pair["chosen"] for pair in pairs], [pair["rejected"] for pair in pairs]]
    prompts = [pair["prompt"] for pair in pairs]
    return PreferenceBatch(
        laid_out(prompts * 2, sides[0] + sides[1], device),
        pairs=len(pairs),
        longest_chosen=max(map(len, sides[0])),
        chosen_tokens=sum(map(len, sides[0])),
        rejected_tokens=sum(map(len, sides[1])),
        prompts=tuple(prompts),
        reference=None if reference is None else torch.tensor(reference, device=device).T.flatten(),
    )


class Preference(Training):
    """Base of the preference techniques."""

    family: ClassVar[str] = "preference"
    primary: ClassVar[Mapping[Axis, str]] = {
        "quality": "preference_accuracy",
        "latency": "time_per_step",
        "memory": "peak_memory",
    }
    train_mode: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    """Whether its steps write completions of their own: the pairs do not say when it has had enough."""

    @property
    def kl_bound(self) -> float:
        """Where nothing is trained: at most this far from the reference [nat]."""
        return 0.0

    @property
    def written_per_answer(self) -> int:
        """Completions that are written at inference for one that is kept."""
        return 1

    @property
    def reference_known(self) -> bool:
        """Whether its steps read what the reference makes of their texts from the pairs, where it was put before."""
        return False

    @property
    def own_reference(self) -> bool:
        """Whether the policy starts from, and is held to, another network than the untrained model: one of 4 bits."""
        return False

    def reference_logits(self, prepared: TrainedPrepared, texts: Completions) -> Tensor:
        """Logits `(rows, completion, vocabulary)` under the reference that the technique holds itself.

        Raises:
            Unsupported: it holds none.
        """
        raise Unsupported("it holds no reference: the untrained model is it")

    @abstractmethod
    def prepare(self, sources: Sources) -> TrainedPrepared:
        """Build the policy; before the first step it is the reference."""

    @abstractmethod
    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        """Loss `()` of one batch, with its graph."""

    @torch.no_grad()
    def logits(self, prepared: TrainedPrepared, texts: Completions) -> Tensor:
        """Logits `(rows, completion, vocabulary)` of the completions' tokens under the policy."""
        with prepared.precision():
            return completion_logits(prepared.model, texts)

    def logprobs(self, prepared: TrainedPrepared, texts: Completions) -> Tensor:
        """Log-probability of each completion under the policy, `(rows,)`."""
        return picked_logprobs(self.logits(prepared, texts), texts).sum(-1)

    def generate(
        self,
        prepared: TrainedPrepared,
        prompts: Sequence[Sequence[int]],
        rollout: Rollout,
        generator: torch.Generator,
    ) -> list[list[int]]:
        """A completion of each prompt, as the technique's user gets it."""
        with prepared.precision():
            return sample(prepared.model, prompts, rollout, generator)
