"""What decoding workloads share: prompts become jobs, outputs are scored and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field

from bench.families.decoding import Decoding, DecodingJob, DecodingPrepared
from bench.families.lossless import first_divergence, greedy_gate
from bench.models import Source
from bench.technique import Prepared, Technique
from bench.workload import Built, Gate, Quality, Work, Workload

T = TypeVar("T")

SHOWN_TOKENS = 24
"""Beginning of a prompt that is shown beside its output [tokens]."""


class DecodingWorkload(Workload):
    """Base of the decoding workloads: `build` gives prompts to time and prompts to score."""

    family: ClassVar[str] = "decoding"
    smallest: ClassVar[Mapping[str, int]] = {"new_tokens": 16, "items": 2, "timed_prompts": 3, "burst_prompts": 1}

    new_tokens: int = Field(default=32, ge=2, le=8192)
    """Tokens emitted per prompt, a fixed length [tokens]."""
    items: int = Field(default=12, ge=1)
    """Prompts that are scored."""
    timed_prompts: int = Field(default=48, ge=2)
    """Distinct prompts for the timed bursts."""
    burst_prompts: int = Field(default=4, ge=1)
    """Prompts of one timed burst: what a draft is worth differs from prompt to prompt."""
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    """0 is greedy decoding."""
    top_k: int = Field(default=0, ge=0)
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the likeliest tokens that hold this share."""
    batch: int = Field(default=1, ge=1, le=256)
    """Prompts that are continued together."""

    def job(self, prompts: list[list[int]], seed: int, device: str) -> DecodingJob:
        return DecodingJob(
            prompts=tuple(torch.tensor(ids, device=device) for ids in prompts),
            max_new_tokens=self.new_tokens,
            seed=seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            batch=self.batch,
        )

    def burst(self, built: Built, index: int, seed: int, device: str) -> DecodingJob:
        return self.job(self._of_burst(built["timed"], index), seed + index, device)

    def groups(self, built: Built, index: int) -> list[str]:
        return self._of_burst(built.get("categories", {}).get("timed", []), index)

    def _of_burst(self, of_prompts: Sequence[T], index: int) -> list[T]:
        places = range(index * self.burst_prompts, (index + 1) * self.burst_prompts) if of_prompts else ()
        return [of_prompts[place % len(of_prompts)] for place in places]

    @property
    def prompt_tokens(self) -> int:
        """About how long a prompt is, for the plan [tokens]."""
        return 256

    def work(self) -> tuple[Work, Work, Work]:
        one = Work(prefill=self.prompt_tokens, decode=self.new_tokens)
        scored = Work(prefill=self.prompt_tokens + self.new_tokens) + one
        return Work(), one.times(self.burst_prompts), scored.times(self.items)

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        assert isinstance(technique, Decoding)
        assert isinstance(prepared, DecodingPrepared)
        job = self.job(built["scored"], seed, source.device)
        outputs, counts = technique.generate(prepared, job)
        scored = [
            technique.logprobs(prepared, prompt, torch.tensor(output, device=prompt.device))
            for prompt, output in zip(job.prompts, outputs, strict=True)
        ]
        nll = [float(-scores.mean()) for scores in scored]
        base = reference.outputs if reference else outputs
        decode = source.tokenizer.decode
        return Quality(
            metrics={
                "output_nll": nll,
                "token_agreement": [_agreement(a, b) for a, b in zip(outputs, base, strict=True)],
            },
            outputs=outputs,
            texts=[
                {"prompt": decode(p[:SHOWN_TOKENS].tolist()), "output": decode(o)}
                for p, o in zip(job.prompts[:2], outputs[:2], strict=True)
            ],
            counts=_total(counts),
            gates=list(_gates(technique, prepared, job, outputs, base, nll)),
        )


def _total(counts: list[dict[str, int]]) -> dict[str, float]:
    names = sorted({name for one in counts for name in one})
    return {name: float(sum(one.get(name, 0) for one in counts)) for name in names}


def _agreement(output: list[int], base: list[int]) -> float:
    return first_divergence(output, base) / max(len(base), 1)


def _gates(
    technique: Decoding,
    prepared: DecodingPrepared,
    job: DecodingJob,
    outputs: list[list[int]],
    base: list[list[int]],
    nll: list[float],
) -> Iterator[Gate]:
    finite = all(value == value and abs(value) != float("inf") for value in nll)
    yield Gate("finite", finite, "log-likelihoods of the output are finite")
    lengths = sum(map(len, outputs)) / max(sum(map(len, base)), 1)
    yield Gate("length", 0.9 <= lengths <= 1.1, f"{lengths:.3f} of the baseline's output length")
    if technique.lossless and job.temperature == 0:
        yield greedy_gate(prepared.model, job.prompts, outputs, base)
