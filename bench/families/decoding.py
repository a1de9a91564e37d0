"""Decoding: how a fixed model's text is produced, one prompt at a time.

The loop is shared: a prefill that emits the first token, then rounds; a technique says what a round does. Time is
TTFT (the prefill) and TPOT (the rounds over the tokens they emit).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers.cache_utils import Cache

from bench.families import attention
from bench.families import cache as kv
from bench.families.lossless import first_divergence, greedy_gate
from bench.models import Source, Sources
from bench.technique import Axis, Job, Prepared, Step, Technique
from bench.workload import Built, Gate, Quality, Work, Workload

SHOWN_TOKENS = 24
"""Beginning of a prompt that is shown beside its output [tokens]."""


@dataclass(frozen=True, kw_only=True)
class DecodingJob(Job):
    """Continue each prompt."""

    prompts: tuple[Tensor, ...]
    """Ids, each `(prompt_tokens,)`."""
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    """Ids that end a text; none: every text has `max_new_tokens`."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0

    def generator(self, item: int, device: torch.device) -> torch.Generator:
        """The random numbers of one prompt: of seed and item, never of the order of arms."""
        return torch.Generator(device).manual_seed(self.seed * 1_000_003 + item)

    def distribution(self, logits: Tensor) -> Tensor:
        """Logits `(..., vocabulary)` -> the probabilities tokens are drawn from: one-hot where greedy."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, best, 1.0)
        logits = logits.float() / self.temperature
        if self.top_k:
            lowest = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
        return logits.softmax(-1)

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Logits `(tokens, vocabulary)` -> ids `(tokens,)`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.distribution(logits), 1, generator=generator)[:, 0]


@dataclass
class Row:
    """One prompt being continued."""

    ids: Tensor
    """Prompt and emitted ids in a buffer `(capacity,)`."""
    length: int
    """How much of the buffer is filled; the last id is not in the cache yet."""
    limit: int
    """Length at which the text is complete."""
    cache: Cache
    generator: torch.Generator

    def append(self, tokens: Tensor) -> None:
        self.ids[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)

    @property
    def room(self) -> int:
        """Tokens that may still be emitted."""
        return self.limit - self.length

    @property
    def known(self) -> Tensor:
        """All ids so far, `(length,)`."""
        return self.ids[: self.length]

    @property
    def last(self) -> Tensor:
        """The newest id, `(1,)`."""
        return self.ids[self.length - 1 : self.length]


@dataclass
class DecodingPrepared(Prepared):
    """The target, and the row that is being continued."""

    row: Row | None = None

    def holdings(self) -> Mapping[str, Any]:
        return {**super().holdings(), "kv_cache": kv.tensors(self.row.cache if self.row else None)}

    def close(self) -> None:
        super().close()
        self.row = None


class Decoding(Technique):
    """Base of the decoding techniques."""

    family: ClassVar[str] = "decoding"
    primary: ClassVar[Mapping[Axis, str]] = {
        "quality": "output_nll",
        "latency": "tpot",
        "memory": "peak_memory",
    }
    lossless: ClassVar[bool] = True
    """Whether the output follows the target's own distribution exactly."""

    def prepare(self, sources: Sources) -> DecodingPrepared:
        model = sources.target.model()
        attention.pack(model)
        return DecodingPrepared(model)

    @abstractmethod
    def round(self, prepared: DecodingPrepared, row: Row, job: DecodingJob) -> tuple[Tensor, Mapping[str, int]]:
        """Emit 1 to `row.room` ids, `(emitted,)`; leave in the cache all ids but the last one emitted."""

    @torch.inference_mode()
    def steps(self, prepared: DecodingPrepared, job: DecodingJob) -> Iterator[Step]:
        for item, prompt in enumerate(job.prompts):
            row = self._begin(prepared, prompt, item, job)
            prepared.row = row
            with job.phase("prefill"):
                logits = kv.read(prepared.model, row.known[None], row.cache)
                row.append(job.choose(logits[0], row.generator))
            _, done = self._cut(row.last, job)
            yield Step("prefill", 1, (row.last.clone(),))
            while row.room and not done:
                tokens, counts = self.round(prepared, row, job)
                tokens, done = self._cut(tokens, job)
                row.append(tokens)
                yield Step("decode", len(tokens), (tokens.clone(),), counts)
        prepared.row = None

    def _begin(self, prepared: DecodingPrepared, prompt: Tensor, item: int, job: DecodingJob) -> Row:
        limit = len(prompt) + job.max_new_tokens
        cache = kv.preallocated(prepared.model.config, limit)
        row = Row(prompt.new_empty(limit), 0, limit, cache, job.generator(item, prompt.device))
        row.append(prompt)
        return row

    def _cut(self, tokens: Tensor, job: DecodingJob) -> tuple[Tensor, bool]:
        """The tokens up to the first that ends a text, and whether there is one."""
        if not job.stop_ids:
            return tokens, False
        for index, token in enumerate(tokens.tolist()):
            if token in job.stop_ids:
                return tokens[: index + 1], True
        return tokens, False

    def generate(self, prepared: DecodingPrepared, job: DecodingJob) -> tuple[list[list[int]], dict[str, int]]:
        """Ids per prompt, and the totals of what the steps counted."""
        outputs: list[list[int]] = []
        totals: dict[str, int] = {"steps": 0}
        for step in self.steps(prepared, job):
            if step.kind == "prefill":
                outputs.append([])
            else:
                totals["steps"] += 1
            outputs[-1] += step.outputs[0].tolist()
            for name, count in step.counts.items():
                totals[name] = totals.get(name, 0) + count
        return outputs, totals

    @torch.inference_mode()
    def logprobs(self, prepared: DecodingPrepared, prompt: Tensor, output: Tensor) -> Tensor:
        """Log-probabilities `(output_tokens,)` of an output behind its prompt under the target."""
        ids = torch.cat([prompt, output])[None]
        logits = prepared.model(input_ids=ids, use_cache=False, logits_to_keep=len(output) + 1).logits
        scores: Tensor = logits[0, :-1].float().log_softmax(-1)
        return scores.gather(-1, output[:, None])[:, 0]


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

    def job(self, prompts: list[list[int]], seed: int, device: str) -> DecodingJob:
        return DecodingJob(
            prompts=tuple(torch.tensor(ids, device=device) for ids in prompts),
            max_new_tokens=self.new_tokens,
            seed=seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def burst(self, built: Built, index: int, seed: int, device: str) -> DecodingJob:
        timed = built["timed"]
        first = index * self.burst_prompts
        prompts = [timed[place % len(timed)] for place in range(first, first + self.burst_prompts)]
        return self.job(prompts, seed + index, device)

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
        outputs, totals = technique.generate(prepared, job)
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
            counts={name: float(count) for name, count in totals.items()},
            gates=list(_gates(technique, prepared, job, outputs, base, nll)),
        )


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
