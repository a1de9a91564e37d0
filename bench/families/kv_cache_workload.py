"""What long-context workloads share: texts become jobs, and what a cache makes of them is scored and checked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.families import cache as kv
from bench.families.kv_cache import Continuation, KVCache, KVCacheJob, KVCachePrepared, full_logits
from bench.families.lossless import first_divergence
from bench.families.texts import padded_left
from bench.models import Source
from bench.technique import Prepared, Technique
from bench.workload import Built, Gate, Quality, Work, Workload

GATE_ROWS = 2
"""Contexts that the mask oracle reads at most: of one batch, to see rows mixed up."""
GATE_CONTEXT = 4096
"""Of a context, the first tokens that the mask oracle reads at most: its time grows with their square [tokens]."""
GATE_STEPS = GATE_CONTEXT // 32 + 4
"""Decoding steps that the mask oracle follows at most: past an eviction behind a 32nd of the context [tokens]."""
LONG = 256
"""Scored tokens from which on a continuation has a beginning and an end that are told apart [tokens]."""
SHOWN_TOKENS = 16
"""End of a context that is shown beside its continuation [tokens]."""


class KVCacheWorkload(Workload):
    """Base of the long-context workloads: texts whose end is scored, given their beginning.

    `build` gives `{"scored": rows of a context and new_tokens ids, "timed": rows of a context's ids}`.
    """

    family: ClassVar[str] = "kv_cache"
    smallest: ClassVar[Mapping[str, int]] = {"context": 256, "new_tokens": 8, "items": 2, "timed_contexts": 3}

    context: int = Field(default=1024, ge=8, le=1_048_576)
    """Tokens read before the first is emitted [tokens]."""
    shortest: int | None = Field(default=None, ge=8)
    """Contexts have `shortest` to `context` tokens, and those of a batch are padded to the longest; without it all have
    `context` [tokens]."""
    new_tokens: int = Field(default=32, ge=2, le=65536)
    """Tokens emitted, and tokens scored, behind each context [tokens]."""
    items: int = Field(default=12, ge=1)
    """Contexts that are scored."""
    timed_contexts: int = Field(default=24, ge=1)
    """Distinct contexts for the timed bursts."""
    batch: int = Field(default=1, ge=1)
    """Contexts continued at once, timed and scored."""
    read_once: bool = False
    """Time decoding alone, again and again behind a context that a process reads once, with `timed_contexts=batch`;
    many more bursts fit into a run, nearer each other. There is no time to the first token then."""

    @model_validator(mode="after")
    def _batch_is_there(self) -> Self:
        if self.timed_contexts < self.batch:
            raise ValueError(
                f"timed_contexts={self.timed_contexts} does not fill a batch of {self.batch}; "
                f"give at least {self.batch}"
            )
        return self

    @model_validator(mode="after")
    def _shortest_is_shorter(self) -> Self:
        if self.shortest is not None and self.shortest > self.context:
            raise ValueError(f"shortest={self.shortest} is above context={self.context}; give at most as many")
        return self

    @model_validator(mode="after")
    def _reads_the_same(self) -> Self:
        if self.read_once and self.timed_contexts != self.batch:
            raise ValueError(
                f"timed_contexts={self.timed_contexts} with read_once: all bursts go on behind the same contexts; "
                f"give timed_contexts={self.batch}, as many as batch"
            )
        return self

    def quick(self) -> Self:
        batch = min(self.batch, self.smallest["timed_contexts"])
        shortest = None if self.shortest is None else min(self.shortest, self.smallest["context"])
        return super(KVCacheWorkload, self.model_copy(update={"batch": batch, "shortest": shortest})).quick()

    def length(self, rng: random.Random) -> int:
        """Of one context [tokens]."""
        return self.context if self.shortest is None else rng.randint(self.shortest, self.context)

    def burst(self, built: Built, index: int, seed: int, device: str) -> KVCacheJob:
        timed = built["timed"]
        rows = [timed[(index * self.batch + row) % len(timed)] for row in range(self.batch)]
        contexts, padding = padded(rows, device)
        return KVCacheJob(
            contexts=contexts,
            padding=padding,
            max_new_tokens=self.new_tokens,
            seed=seed + index,
            read_once=self.read_once,
        )

    def work(self) -> tuple[Work, Work, Work]:
        one = Work(prefill=self.context, decode=self.new_tokens)
        gate = self.gate_work(self.new_tokens)
        full = Work(prefill=self.context + self.new_tokens)
        return Work(), one.times(self.batch), (one + one + full).times(self.items) + gate

    def timed_work(self) -> Work:
        _, burst, _ = self.work()
        return Work(decode=burst.decode) if self.read_once else burst

    def gate_work(self, behind: int) -> Work:
        """Of the mask oracle, where `behind` tokens are read one by one."""
        # the technique and the plain cache, token by token, and twice the whole text at once
        steps = min(behind - 1, GATE_STEPS)
        context = min(self.context, GATE_CONTEXT)
        return Work(prefill=4 * context, decode=2 * steps).times(min(self.batch, GATE_ROWS))

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        assert isinstance(technique, KVCache)
        assert isinstance(prepared, KVCachePrepared)
        result = Quality(
            metrics={name: [] for name in ("nll", "next_token_accuracy", "step_divergence", "step_agreement")}
        )
        by_step: list[Tensor] = []
        for rows, padding in self.batches(built, source.device):
            context = rows.shape[1] - self.new_tokens
            job = KVCacheJob(contexts=rows[:, :context], padding=padding, max_new_tokens=self.new_tokens, seed=seed)
            self.continued(technique.generate(prepared, job), job, result)
            full = full_logits(prepared.model, rows, context, padding)
            scores = technique.score(prepared, rows, context, full, padding)
            assert scores.divergences is not None
            assert scores.agreements is not None
            result.metrics["nll"] += (-scores.logprobs.mean(1)).tolist()
            if self.new_tokens >= LONG:
                first, *_, last = (-scores.logprobs).chunk(4, 1)
                result.metrics.setdefault("nll_rise", []).extend((last.mean(1) - first.mean(1)).tolist())
            result.metrics["next_token_accuracy"] += scores.hits.float().mean(1).tolist()
            result.metrics["step_divergence"] += scores.divergences.mean(1).tolist()
            result.metrics["step_agreement"] += scores.agreements.float().mean(1).tolist()
            by_step.append(scores.divergences)
        means = torch.cat(by_step).mean(0).tolist()
        result.curves["divergence_from_the_full_cache"] = [[float(step), mean] for step, mean in enumerate(means)]
        self.compared(result, reference)
        result.texts = self._texts(source, built["scored"], result.outputs)
        result.gates = list(self.gates(technique, prepared, built, self.new_tokens, result, source.device))
        return result

    def batches(self, built: Built, device: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Scored rows `(batch, tokens)`, and their padding: see `padded`."""
        scored = built["scored"]
        for first in range(0, len(scored), self.batch):
            yield padded(scored[first : first + self.batch], device)

    def continued(self, made: Continuation, job: KVCacheJob, result: Quality) -> None:
        """Take down what a cache wrote, and what it held."""
        rows = len(made.outputs)
        done = len(result.outputs)
        result.outputs += made.outputs
        none = 0.0 if job.padding is None else float(job.padding.float().mean())
        seen = job.contexts.shape[1] - none + job.late + job.max_new_tokens - 1
        for name, mean in (("kept_tokens", made.kept_tokens), ("seen_tokens", seen)):
            result.counts[name] = (result.counts.get(name, 0.0) * done + mean * rows) / (done + rows)
        result.counts["kv_cache_bytes"] = max(result.counts.get("kv_cache_bytes", 0.0), float(made.bytes))

    def compared(self, result: Quality, reference: Quality | None) -> None:
        """Where what was written leaves the baseline's."""
        base = reference.outputs if reference else result.outputs
        result.metrics["token_agreement"] = [
            first_divergence(a, b) / max(len(b), 1) for a, b in zip(result.outputs, base, strict=True)
        ]

    def _texts(self, source: Source, rows: list[list[int]], outputs: list[list[int]]) -> list[dict[str, str]]:
        decode = source.tokenizer.decode
        return [
            {
                "prompt": "..." + decode(row[: -self.new_tokens][-SHOWN_TOKENS:]),
                "output": decode(output),
                "true": decode(row[-self.new_tokens :]),
            }
            for row, output in zip(rows[:2], outputs[:2], strict=True)
        ]

    def gates(
        self,
        technique: KVCache,
        prepared: KVCachePrepared,
        built: Built,
        behind: int,
        result: Quality,
        device: str,
    ) -> Iterator[Gate]:
        """Finite scores, full lengths, and the mask oracle on scored rows whose last `behind` ids are read one by one.

        Of rows that would be padded the oracle reads one.
        """
        scored = [value for values in result.metrics.values() for value in values]
        finite = bool(torch.tensor(scored).isfinite().all())
        yield Gate("finite", finite, "all figures of the quality pass are finite")
        wrong = [len(output) for output in result.outputs if len(output) != self.new_tokens]
        yield Gate(
            "length",
            not wrong,
            f"{wrong[0]} tokens were emitted instead of {self.new_tokens}"
            if wrong
            else f"all outputs have {self.new_tokens} tokens",
        )
        from bench.families import kv_oracle, kv_rounding  # their imports take a second, and only gates need them

        if not kv_oracle.applies(prepared.model):
            return
        rows, padding = padded(built["scored"][: min(self.batch, GATE_ROWS)], device)
        if padding is not None:
            rows, _ = padded(built["scored"][:1], device)
        steps = min(behind - 1, GATE_STEPS)
        context = min(rows.shape[1] - behind, GATE_CONTEXT)
        # the sizes of the scored job, so that the budget is what it is there
        cache = technique.cache(prepared, len(rows), context, behind)
        judge = kv_rounding.gate if any(isinstance(a, kv.LossyLayer) for a in cache.layers) else kv_oracle.gate
        yield judge(prepared.model, cache, rows[:, : context + steps], context)


def padded(rows: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor | None]:
    """Rows of ids that end together, `(batch, longest)`, and how many in front of each are none, `(batch,)`; no tensor
    where all are as long."""
    ids, padding = padded_left(rows, device)
    return ids, padding if bool(padding.any()) else None
