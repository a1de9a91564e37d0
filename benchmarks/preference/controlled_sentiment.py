"""Controlled sentiment: the paper's IMDb experiment in small, with a reward that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from bench import text_file
from bench.conversation import opened
from bench.errors import Unsupported, UsageError
from bench.families.preference import Pair, Preference
from bench.families.preference_workload import PreferenceWorkload
from bench.families.rollout import Rollout, distinct, repetition, sample, scored
from bench.families.training import Looks, TrainedPrepared, frozen, training_gates
from bench.models import Source, Sources
from bench.registry import register
from bench.stats import half_interval
from bench.technique import Axis, Prepared, Technique
from bench.workload import Built, Quality, Work
from benchmarks.preference.core import frontier, rewards
from benchmarks.preference.core.looks import Look, drawn, look, mean, written
from benchmarks.preference.core.sampled_pairs import sampled_pairs

OPENINGS = Path(__file__).with_suffix(".txt")
FRESH_EVERY = 4
"""Of this many openings one is kept from training."""
SHORT_OF_BUDGET = {
    "its KL divergence ended below the one at which it is compared: reward_at_kl is the reward of its end": (
        "more steps or a higher learning rate; or a lower workload.kl_budget"
    )
}
FAR_FROM_LOOKS = {
    "no look at its training lies within half and twice the divergence at which it is compared: reward_at_kl is read "
    "off a line between two that are far apart": "more workload.checkpoints"
}
SHOWN = 2
"""Fresh prompts whose completions are shown."""


@register
class ControlledSentiment(PreferenceWorkload):
    """Openings of reviews; chosen is the completion of the reference whose sentiment is the better by a clear gap.

    Reward and KL divergence are taken from completions of fresh openings, at several checkpoints of the training:
    arms are compared at one KL divergence, not at one number of steps. What best-of-n and the exponential tilt make of
    the reference's own completions is drawn beside them.

    Networks with random weights write no words. With them the reward is the share of letters, and any gap will do.

    Differs from the paper (section 6.1): openings of our own; VADER labels instead of a trained classifier; the
    reference is the model as it is, not finetuned on reviews; the KL divergence is summed over the whole vocabulary.
    """

    source: ClassVar[str] = "96 openings of reviews written for this project (Apache-2.0); VADER (MIT)"
    smallest: ClassVar[Mapping[str, int]] = {
        **PreferenceWorkload.smallest,
        "pairs": 8,
        "fresh": 3,
        "samples": 2,
        "completion": 8,
        "oracle": 4,
    }
    primary: ClassVar[Mapping[Axis, str]] = {"quality": "reward_at_kl"}

    batch_size: int = Field(default=8, ge=1)
    """Pairs per optimiser step."""
    steps: int = Field(default=64, ge=1)
    """Optimiser steps of the quality pass [steps]."""
    pairs: int = Field(default=512, ge=1)
    """Training pairs; fewer are used where steps * batch_size is less, and more than one epoch over-fits."""
    completion: int = Field(default=24, ge=1, le=8192)
    """Length of a completion at most [tokens]."""
    gap: float = Field(default=0.4, ge=0)
    """Least difference in reward between the two completions of a pair."""
    noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of training pairs whose labels are turned round; exactly that many. Held-out pairs keep theirs."""
    fresh: int = Field(default=24, ge=1)
    """Openings that are kept from training and completed for reward and KL divergence."""
    samples: int = Field(default=4, ge=1)
    """Completions of each of them at every checkpoint."""
    oracle: int = Field(default=16, ge=2)
    """Completions of each of them by the reference: its reward, best-of-n and the tilt."""
    checkpoints: int = Field(default=4, ge=1)
    """As of every preference workload. Here the policy also writes for the fresh openings, as often, at the squares of
    even shares of the training: at first the divergence grows with the square of what was learnt."""
    kl_budget: float = Field(default=2.0, gt=0)
    """The KL divergence at which arms are compared; that of the baseline's end where it does not get so far [nat]."""
    time_budget: float = Field(default=0.0, ge=0)
    """An arm that writes texts of its own (ppo) ends its training before a step that, as long as its others, would take
    it beyond so many times the seconds of the baseline's under the same seed; 0: after as many steps as the others.
    Where it ends depends on the machine."""
    reward: rewards.Name = "vader"
    """`vader`: sentiment, -1 to 1; `letters`: share of characters that are letters."""
    path: str = ""
    """Openings of your own instead: one per line, or .jsonl (prompt)."""

    def check(self) -> None:
        rewards.named(self.reward)
        self._openings()

    @property
    def pair_tokens(self) -> int:
        return 2 * (12 + self.completion)

    @property
    def train_pairs(self) -> int:
        return self.pairs

    def work(self) -> tuple[Work, Work, Work]:
        reference, burst, quality = super().work()
        # two completions in five find a partner; the openings of a round are completed together
        drawn = 5 * (self.pairs + self.items) + self.fresh * self.oracle
        # what was written is read by policy and reference
        looked = Work(decode=self.completion * self.samples, prefill=self.fresh * self.samples * self.pair_tokens)
        sampled = Work(decode=self.completion * -(-drawn // 64), prefill=self.completion * drawn)
        return reference + sampled, burst, quality + looked.times(self.checkpoints)

    def train_work(self, technique: Technique, baseline: Technique) -> float:
        if self.time_budget and isinstance(technique, Preference) and technique.writes:
            return min(technique.train_work, self.time_budget * baseline.train_work)
        return technique.train_work

    def _limit(self, technique: Preference, reference: Quality | None) -> float:
        """How long an arm may train [s].

        Raises:
            Unsupported: the baseline was not trained, and the budget is counted in its seconds.
        """
        if not self.time_budget or not technique.writes:
            return math.inf
        if reference is None or reference.train_seconds is None:
            raise Unsupported(
                f"time_budget={self.time_budget:g} is in seconds of the baseline's training, and there is none: "
                f"take a baseline that trains, or set workload.time_budget=0"
            )
        return self.time_budget * reference.train_seconds

    def _read(self) -> list[str]:
        prompts = text_file.read_prompts(Path(self.path) if self.path else OPENINGS)
        return list(dict.fromkeys(prompt.turns[-1] for prompt in prompts))

    def _openings(self) -> tuple[list[str], list[str]]:
        """Those to train on, and the fresh ones.

        Raises:
            UsageError: the file is missing, malformed or too short.
        """
        texts = self._read()
        fresh = texts[FRESH_EVERY - 1 :: FRESH_EVERY][: self.fresh]
        if len(fresh) < self.fresh:
            raise UsageError(
                f"{self.path or 'the embedded openings'}: {len(texts)} different openings give {len(fresh)} fresh ones "
                f"(one in {FRESH_EVERY}), {self.fresh} are needed; lower fresh"
            )
        kept = set(texts[FRESH_EVERY - 1 :: FRESH_EVERY])
        return [text for text in texts if text not in kept], fresh

    def rollout(self, built: Built, device: str) -> Rollout:
        drawn = built["drawn"]
        banned = torch.tensor(drawn["banned"], device=device, dtype=torch.long)
        return Rollout(self.completion, drawn["stop"], banned, rewards.named(built["reward"]), tuple(self._read()))

    def build(self, sources: Sources, seed: int) -> Built:
        source = sources.target
        model = source.model()
        openings, fresh = ([opened(source.tokenizer, text) for text in texts] for texts in self._openings())
        built: Built = {
            "reward": "letters" if source.is_random else self.reward,
            "drawn": drawn(source, source.tokenizer.eos_token_id),
            "fresh": fresh,
        }
        rollout = self.rollout(built, source.device)
        gap = 0.0 if source.is_random else self.gap
        generator = torch.Generator(source.device).manual_seed(seed)

        def write(prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
            completions = sample(model, prompts, rollout, generator)
            texts, openings = ([written(source, ids) for ids in rows] for rows in (completions, prompts))
            return completions, scored(rollout, texts, openings)

        train = sampled_pairs(write, openings, self.pairs, gap, seed)
        flipped = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed + 1))
        for row in flipped[: round(self.noise * len(train))].tolist():
            pair = train[row]
            train[row] = Pair(prompt=pair["prompt"], chosen=pair["rejected"], rejected=pair["chosen"])
        heldout = sampled_pairs(write, fresh, self.items, gap, seed)
        own = [write(fresh) for _ in range(self.oracle)]
        texts = [completions for completions, _ in own]
        return {
            **built,
            "train": train,
            "heldout": heldout,
            "train_reference": self.reference_logprobs(model, train, source.device),
            "reference": self.reference_logprobs(model, heldout, source.device),
            "oracle": [list(of_prompt) for of_prompt in zip(*(worth for _, worth in own), strict=True)],
            "before": [written(source, ids) for ids in own[0][0]],
            "before_tokens": mean([float(len(ids)) for completions, _ in own for ids in completions]),
            # of as many completions as are looked at later: of more of them fewer are different
            "before_distinct": mean([distinct(of_prompt[: self.samples]) for of_prompt in zip(*texts, strict=True)]),
            "before_repetition": mean([repetition(ids) for completions, _ in own for ids in completions]),
        }

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        """Held-out pairs, then reward and KL divergence along the training.

        Raises:
            Diverged: a loss is not finite.
            BenchError: a reward is not a finite number.
        """
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        start = source.model() if technique.trains else None
        looks = [Look(0, [mean(own) for own in built["oracle"]], [0.0] * len(built["oracle"]))]
        limit = self._limit(technique, reference)
        checkpoints = Looks(self.checkpoints, power=2)

        def watch(step: int, share: float) -> None:
            if checkpoints.due(share) or not looks:
                rollout = self.rollout(built, source.device)
                looks.append(
                    look(technique, prepared, start, built["fresh"], self.samples, rollout, source, seed, step)
                )

        if technique.own_reference:
            looks.clear()
            watch(0, 0.0)  # its start writes other texts than the untrained model
        if technique.trains:
            quality = self.trained(technique, prepared, built, seed, source, watch, limit)
        else:
            bits = frozen(prepared)
            watch(self.steps, 1.0)
            quality = Quality(gates=training_gates(bits, frozen(prepared), looks[-1].rewards))
        return self._with_frontier(quality, looks, technique, built, source, reference)

    def _with_frontier(
        self,
        quality: Quality,
        looks: list[Look],
        technique: Technique,
        built: Built,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        last = looks[-1]
        # the same seed's baseline: at more divergence than it came to, more reward is no merit
        # a baseline that is not trained comes nowhere, and holds no one back
        reached = reference.metrics.get("kl") if reference else last.divergences
        at = self.kl_budget if reached is None else min(self.kl_budget, mean(reached))
        if max(one.divergence for one in looks) < at:
            quality.notes |= SHORT_OF_BUDGET
        elif technique.trains and not any(at / 2 <= one.divergence <= 2 * at for one in looks):
            quality.notes |= FAR_FROM_LOOKS
        quality.metrics |= {
            "reward_at_kl": frontier.at_budget([one.divergence for one in looks], [one.rewards for one in looks], at),
            "reward": last.rewards,
            "repetition": last.by_prompt([repetition(ids) for ids in last.completions]),
            "distinct": [distinct(own) for own in last.of_prompts(last.completions)],
        }
        base = reference.metrics["reward"] if reference else last.rewards
        quality.metrics["win_rate"] = [
            0.5 + 0.5 * ((own > other) - (own < other)) for own, other in zip(last.rewards, base, strict=True)
        ]
        quality.curves["reward_over_kl"] = [[one.divergence, one.reward] for one in looks]
        quality.half_widths["reward_over_kl"] = [
            [half_interval(one.divergences), half_interval(one.rewards)] for one in looks
        ]
        if technique.trains:
            quality.metrics["kl"] = last.divergences
            quality.curves["reward"] = [[float(one.step), one.reward] for one in looks]
            quality.curves["kl"] = [[float(one.step), one.divergence] for one in looks]
            quality.half_widths |= {
                "reward": [[None, half_interval(one.rewards)] for one in looks],
                "kl": [[None, half_interval(one.divergences)] for one in looks],
            }
        else:
            quality.counts["kl_bound"] = last.divergence
        quality.counts["compared_at_kl"] = at
        if reference is None:
            quality.curves["reward_over_kl: best of n"] = frontier.best_of(built["oracle"])
            quality.curves["reward_over_kl: tilted reference"] = frontier.tilt(built["oracle"])
        quality.counts |= {
            "reward_before": looks[0].reward,
            "output_tokens": mean([float(len(ids)) for ids in last.completions]),
            "written_per_answer": float(technique.written_per_answer),
            "seconds_per_answer": last.seconds / len(last.completions),
        }
        before = looks[0].texts or built["before"]
        if not looks[0].texts:  # its start is the untrained model
            quality.counts |= {
                "output_tokens_before": built["before_tokens"],
                "repetition_before": built["before_repetition"],
            }
            risen = frontier.rise(built["oracle"], last.reward, self.samples)
            if risen is not None:
                quality.counts["reward_rise_in_deviations"] = risen
            if self.oracle >= self.samples:
                quality.counts["distinct_before"] = built["before_distinct"]
        for row in range(min(SHOWN, len(last.texts))):
            opening = source.tokenizer.decode(built["fresh"][row], skip_special_tokens=True)
            shown = f"{opening} ... (before training:{before[row]})"
            quality.texts.append({"prompt": shown, "output": opening + last.texts[row]})
        return quality
