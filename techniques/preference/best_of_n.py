"""Best of n: nothing is trained; of several completions the one with the highest reward is kept."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.errors import Unsupported
from bench.families.preference import Preference, PreferenceBatch, PreferenceJob
from bench.families.rollout import Rollout, sample, scored
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from bench.technique import Step


@register
class BestOfN(Preference):
    """Write n completions of a prompt with the reference and keep the best, each time anew.

    It needs the reward where the model is used, and n times the generation: it is paid at inference. A step is one
    batch of prompts. The policy it stands for is at most log n - (n - 1) / n nats from the reference.
    """

    source: ClassVar[str] = "Rafailov et al. 2023, section 6 (Best of N); Beirami et al. 2024 (bound of the divergence)"
    trains: ClassVar[bool] = False

    n: int = Field(default=8, ge=1)
    """Completions that are written for one that is kept."""

    @property
    def written_per_answer(self) -> int:
        return self.n

    @property
    def kl_bound(self) -> float:
        return math.log(self.n) - (self.n - 1) / self.n

    def prepare(self, sources: Sources) -> TrainedPrepared:
        decode = sources.target.tokenizer.decode
        model = sources.target.model().requires_grad_(False)
        return TrainedPrepared(model, state=lambda ids: str(decode(ids, skip_special_tokens=True)))

    def steps(self, prepared: TrainedPrepared, job: PreferenceJob) -> Generator[Step]:
        if job.rollout is None:
            raise Unsupported("it needs to know what a completion is worth: use a workload with a reward")
        for step, batch in enumerate(job.batches, start=job.first_step):
            generator = torch.Generator(job.rollout.banned.device).manual_seed(job.seed * 1_000_003 + step)
            with job.phase("rollout"):
                written = self._written(prepared, batch.prompts, job.rollout, generator)
            with job.phase("reward"):
                kept = self._best(prepared, batch.prompts, written, job.rollout)
            outputs = tuple(torch.tensor(ids) for ids in kept)
            counts = {"forward_texts": 0, "generated_tokens": sum(map(len, written))}
            yield Step("rollout", sum(map(len, kept)), outputs, counts)

    def generate(
        self,
        prepared: TrainedPrepared,
        prompts: Sequence[Sequence[int]],
        rollout: Rollout,
        generator: torch.Generator,
    ) -> list[list[int]]:
        return self._best(prepared, prompts, self._written(prepared, prompts, rollout, generator), rollout)

    def _written(
        self,
        prepared: TrainedPrepared,
        prompts: Sequence[Sequence[int]],
        rollout: Rollout,
        generator: torch.Generator,
    ) -> list[list[int]]:
        """n completions of each prompt in turn, written together."""
        return sample(prepared.model, [prompt for prompt in prompts for _ in range(self.n)], rollout, generator)

    def _best(
        self, prepared: TrainedPrepared, prompts: Sequence[Sequence[int]], written: list[list[int]], rollout: Rollout
    ) -> list[list[int]]:
        """Of each prompt the completion with the highest reward, the first of those that tie."""
        openings = [opening for opening in map(prepared.state, prompts) for _ in range(self.n)]
        rewards = scored(rollout, list(map(prepared.state, written)), openings)
        places = range(len(written))
        groups = [places[first : first + self.n] for first in places[:: self.n]]
        return [written[max(group, key=rewards.__getitem__)] for group in groups]

    def batch_loss(self, prepared: TrainedPrepared, batch: PreferenceBatch) -> Tensor:
        raise Unsupported("best_of_n trains nothing")
