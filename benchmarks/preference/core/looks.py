"""Looks at a policy while it is trained: what it writes for prompts that it has not seen, and how far it has gone."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from bench.conversation import special_ids
from bench.errors import Unsupported
from bench.families.completions import completion_logits
from bench.families.preference import Preference
from bench.families.rollout import Rollout, divergence, scored
from bench.families.training import TrainedPrepared
from bench.models import Source

T = TypeVar("T")
TOGETHER = 128
"""Completions that are written in one batch, about."""


@dataclass
class Look:
    """What the policy wrote at one checkpoint."""

    step: int
    rewards: list[float]
    """Of each prompt, mean over its completions."""
    divergences: list[float]
    """From the reference, the same [nat]."""
    texts: list[str] = field(default_factory=list)
    """The first completion of each prompt."""
    completions: list[list[int]] = field(default_factory=list)
    """All of them as ids: of every prompt the first, then of every prompt the second ..."""
    seconds: float = 0.0
    """That writing them took [s]."""

    @property
    def reward(self) -> float:
        return mean(self.rewards)

    @property
    def divergence(self) -> float:
        return mean(self.divergences)

    def by_prompt(self, values: Sequence[float]) -> list[float]:
        """Mean per prompt of values that stand as `completions` do."""
        return [mean(own) for own in self.of_prompts(values)]

    def of_prompts(self, values: Sequence[T]) -> list[Sequence[T]]:
        """Values that stand as `completions` do, those of each prompt."""
        return _of_each(values, len(self.rewards))


def look(
    technique: Preference,
    prepared: TrainedPrepared,
    start: nn.Module | None,
    prompts: Sequence[Sequence[int]],
    samples: int,
    rollout: Rollout,
    source: Source,
    seed: int,
    step: int,
) -> Look:
    """Complete each prompt `samples` times, with the same random numbers for every arm and at every checkpoint.

    Args:
        start: the reference; None where nothing is trained, and the bound of the divergence is taken.
        seed: of the training.
        step: steps done.
    """
    theirs = functools.partial(technique.reference_logits, prepared)
    if start is not None and not technique.own_reference:
        theirs = functools.partial(completion_logits, start)
    vocabulary: int = source.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator(source.device).manual_seed(seed)
    together = max(1, TOGETHER // (len(prompts) * technique.written_per_answer))
    rows, completions = [*prompts] * samples, []
    begun = time.perf_counter()
    for first in range(0, len(rows), together * len(prompts)):
        some = rows[first : first + together * len(prompts)]
        completions += technique.generate(prepared, some, rollout, generator)  # lists: the device is done
    seconds = time.perf_counter() - begun
    texts = [written(source, ids) for ids in completions]
    apart = [technique.kl_bound] * len(rows)
    if start is not None:
        ours = functools.partial(technique.logits, prepared)
        apart = divergence(ours, theirs, rows, completions, rollout.banned, vocabulary)
    rewards, divergences = (
        [mean(own) for own in _of_each(values, len(prompts))]
        for values in (scored(rollout, texts, [written(source, ids) for ids in rows]), apart)
    )
    return Look(step, rewards, divergences, texts[: len(prompts)], completions, seconds)


def _of_each(values: Sequence[T], prompts: int) -> list[Sequence[T]]:
    return [values[row::prompts] for row in range(prompts)]


def written(source: Source, ids: Sequence[int]) -> str:
    """The text of some ids, without special ones."""
    text: str = source.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def drawn(source: Source, stop: int | None) -> dict[str, Any]:
    """The id that ends a completion, and those that are never drawn: other special ones and ids without a text."""
    tokenizer = source.tokenizer
    vocabulary = source.config.get_text_config(decoder=True).vocab_size
    banned = {*special_ids(tokenizer), *range(len(tokenizer), vocabulary)} - {stop}
    if len(banned) >= vocabulary - 1:
        raise Unsupported("the model's vocabulary holds no text")
    return {"stop": stop, "banned": sorted(banned)}
