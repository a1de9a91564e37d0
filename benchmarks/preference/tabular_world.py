"""A tabular world: one token answers, a reward for each, and so an optimum that is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench import stats, text_file
from bench.conversation import continued, opened
from bench.errors import Unsupported
from bench.families.completions import laid_out
from bench.families.preference import Pair, Preference
from bench.families.preference_workload import PreferenceWorkload
from bench.families.rollout import Rollout, permitted
from bench.families.training import Looks, TrainedPrepared
from bench.models import Source, Sources
from bench.registry import register
from bench.technique import Axis, Prepared, Technique
from bench.workload import Built, Quality, Work
from benchmarks.preference.controlled_sentiment import OPENINGS
from benchmarks.preference.core.tabular import World


@register
class TabularWorld(PreferenceWorkload):
    """Openings that are answered with one of a few tokens, each worth a reward drawn from N(0, 1).

    Pairs are two different answers, labelled by Bradley and Terry's model of those rewards. The policy over the answers
    can be written down, and so can the best one for a weight of the KL divergence: pi_ref exp(r / beta) / Z (Rafailov
    et al. 2023, eq. 4). `optimum_gap` is what the trained policy's expected reward, less beta times its divergence,
    falls short of the best one's; nothing is sampled for it. It is beta times the divergence from the best policy.

    Give the techniques the same beta. A loss with another aim (imitation, ipo, a hinge) has its own optimum, and a gap
    that no training closes. The openings that are scored are those that are trained on.
    """

    source: ClassVar[str] = "openings of reviews written for this project (Apache-2.0); rewards are drawn"
    smallest: ClassVar[Mapping[str, int]] = {**PreferenceWorkload.smallest, "pairs": 8, "openings": 3, "answers": 4}
    primary: ClassVar[Mapping[Axis, str]] = {"quality": "optimum_gap"}

    batch_size: int = Field(default=16, ge=1)
    """Pairs per optimiser step."""
    steps: int = Field(default=60, ge=1)
    """Optimiser steps of the quality pass [steps]."""
    pairs: int = Field(default=960, ge=1)
    """Training pairs."""
    openings: int = Field(default=24, ge=1, le=96)
    """Prompts; each is an item of `optimum_gap`."""
    answers: int = Field(default=8, ge=2, le=26)
    """Tokens that an answer is one of."""
    beta: float = Field(default=0.5, gt=0)
    """Weight of the KL divergence in the objective whose optimum is known."""
    noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of training pairs whose labels are turned round, beyond Bradley and Terry's chance; exactly that many."""
    checkpoints: int = Field(default=4, ge=1)
    """As of every preference workload; here the policy is also held against the best one."""

    @property
    def pair_tokens(self) -> int:
        return 2 * 13

    @property
    def train_pairs(self) -> int:
        return self.pairs

    def work(self) -> tuple[Work, Work, Work]:
        reference, burst, quality = super().work()
        looked = Work(prefill=2 * self.openings * 13)
        return reference, burst, quality + looked.times(1 + self.checkpoints)

    def rollout(self, built: Built, device: str) -> Rollout:
        worth: dict[str, float] = dict(zip(built["texts"], built["rewards"], strict=True))
        banned = torch.tensor(built["banned"], device=device, dtype=torch.long)
        return Rollout(1, None, banned, worth.__getitem__)

    def build(self, sources: Sources, seed: int) -> Built:
        source = sources.target
        tokenizer = source.tokenizer
        texts = [prompt.turns[-1] for prompt in text_file.read_prompts(OPENINGS)][: self.openings]
        prompts = [opened(tokenizer, text) for text in texts]
        answers = _answers(source, self.answers)
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.randn(len(answers), generator=generator, dtype=torch.float64)

        def drawn(count: int) -> list[Pair]:
            found = []
            for _ in range(count):
                prompt = prompts[int(torch.randint(len(prompts), (), generator=generator))]
                one, other = torch.randperm(len(answers), generator=generator)[:2].tolist()
                wins = torch.rand((), generator=generator) < torch.sigmoid(rewards[one] - rewards[other])
                chosen, rejected = (one, other) if wins else (other, one)
                found.append(Pair(prompt=prompt, chosen=[answers[chosen]], rejected=[answers[rejected]]))
            return found

        train, heldout = drawn(self.pairs), drawn(self.items)
        for row in torch.randperm(len(train), generator=generator)[: round(self.noise * len(train))].tolist():
            pair = train[row]
            train[row] = Pair(prompt=pair["prompt"], chosen=pair["rejected"], rejected=pair["chosen"])
        model = source.model()
        vocabulary = source.config.get_text_config(decoder=True).vocab_size
        return {
            "prompts": prompts,
            "answers": answers,
            "texts": [tokenizer.decode([answer], skip_special_tokens=True) for answer in answers],
            "rewards": rewards.tolist(),
            "banned": sorted(set(range(vocabulary)) - set(answers)),
            "train": train,
            "heldout": heldout,
            "train_reference": self.reference_logprobs(model, train, source.device),
            "reference": self.reference_logprobs(model, heldout, source.device),
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
        """Held-out pairs, and how far the policy is from the best one.

        Raises:
            Diverged: a loss is not finite.
            Unsupported: nothing is trained.
        """
        assert isinstance(technique, Preference)
        assert isinstance(prepared, TrainedPrepared)
        start = _law(technique, prepared, built, source)  # before its first step the policy is the reference
        reward = torch.tensor(built["rewards"], dtype=torch.float64).expand_as(start)
        world = World(reward, start)
        best = world.value(world.optimum(self.beta), self.beta)
        looks, laws, steps = Looks(self.checkpoints), [start], [0]

        def watch(step: int, share: float) -> None:
            if looks.due(share):
                laws.append(_law(technique, prepared, built, source))
                steps.append(step)

        quality = self.trained(technique, prepared, built, seed, source, watch)
        gaps = [(best - world.value(law, self.beta)).tolist() for law in laws]
        last = laws[-1]
        quality.metrics |= {
            "optimum_gap": gaps[-1],
            "reward": (last.exp() * reward).sum(-1).tolist(),
            "kl": (last.exp() * (last - start)).sum(-1).tolist(),
        }
        quality.counts["optimum_gap_before"] = stats.fmean(gaps[0])
        quality.curves["optimum_gap"] = [[float(step), stats.fmean(gap)] for step, gap in zip(steps, gaps, strict=True)]
        quality.half_widths["optimum_gap"] = [[None, stats.half_interval(gap)] for gap in gaps]
        return quality


def _law(technique: Preference, prepared: TrainedPrepared, built: Built, source: Source) -> Tensor:
    """Log-probabilities `(openings, answers)` of the policy, given that it writes one of the answers; float64."""
    answers: list[int] = built["answers"]
    prompts: list[list[int]] = built["prompts"]
    texts = laid_out(prompts, [answers[:1]] * len(prompts), source.device)
    logits: Any = technique.logits(prepared, texts)[:, 0]
    banned = torch.tensor(built["banned"], device=logits.device, dtype=torch.long)
    return permitted(logits, banned)[:, answers].double().log_softmax(-1).cpu()


def _answers(source: Source, count: int) -> list[int]:
    """Ids that are one token each and read differently.

    Raises:
        Unsupported: the tokenizer has too few.
    """
    found: dict[int, None] = {}
    for letter in ascii_uppercase:
        ids = [continued(source.tokenizer, text) for text in (f" {letter}", letter)]
        found |= dict.fromkeys([one[0] for one in ids if len(one) == 1][:1])
    if len(found) < count:
        raise Unsupported(
            f"the tokenizer writes {len(found)} letters with one token, {count} are needed; lower answers"
        )
    return list(found)[:count]
