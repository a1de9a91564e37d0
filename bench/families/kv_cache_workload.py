"""What long-context workloads share: texts become jobs, and what a cache makes of them is scored and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bench.families import cache as kv
from bench.families.kv_cache import Continuation, KVCache, KVCacheJob, KVCachePrepared, full_logits
from bench.families.lossless import first_divergence
from bench.models import Source
from bench.technique import Prepared, Technique
from bench.workload import Built, Gate, Quality, Work, Workload

GATE_STEPS = 32
"""Decoding steps that the mask oracle follows at most [tokens]."""
GATE_ROWS = 2
"""Contexts that the mask oracle reads at most: of one batch, to see rows mixed up."""
GATE_CONTEXT = 4096
"""Of a context, the first tokens that the mask oracle reads at most: its time grows with their square [tokens]."""
LONG = 256
"""Scored tokens from which on a continuation has a beginning and an end that are told apart [tokens]."""
SHOWN_TOKENS = 16
"""End of a context that is shown beside its continuation [tokens]."""


class KVCacheWorkload(Workload):
    """Base of the long-context workloads: texts whose end is scored, given their beginning.

    `build` gives `{"scored": rows of context + new_tokens ids, "timed": rows of context ids}`.
    """

    family: ClassVar[str] = "kv_cache"
    smallest: ClassVar[Mapping[str, int]] = {"context": 256, "new_tokens": 8, "items": 2, "timed_contexts": 3}

    context: int = Field(default=1024, ge=8, le=1_048_576)
    """Tokens read before the first is emitted [tokens]."""
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
    def _reads_the_same(self) -> Self:
        if self.read_once and self.timed_contexts != self.batch:
            raise ValueError(
                f"timed_contexts={self.timed_contexts} with read_once: all bursts go on behind the same contexts; "
                f"give timed_contexts={self.batch}, as many as batch"
            )
        return self

    def burst(self, built: Built, index: int, seed: int, device: str) -> KVCacheJob:
        timed = built["timed"]
        rows = [timed[(index * self.batch + row) % len(timed)] for row in range(self.batch)]
        return KVCacheJob(
            contexts=torch.tensor(rows, device=device),
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
        ids = torch.tensor(built["scored"], device=source.device)  # (items, context + new_tokens)
        result = Quality(
            metrics={name: [] for name in ("nll", "next_token_accuracy", "step_divergence", "step_agreement")}
        )
        by_step: list[Tensor] = []
        for rows in ids.split(self.batch):
            job = KVCacheJob(contexts=rows[:, : self.context], max_new_tokens=self.new_tokens, seed=seed)
            self.continued(technique.generate(prepared, job), result)
            scores = technique.score(prepared, rows, self.context, full_logits(prepared.model, rows, self.context))
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
        result.texts = self._texts(source, ids, result.outputs)
        result.gates = list(self.gates(technique, prepared, ids, self.context, result))
        return result

    def continued(self, made: Continuation, result: Quality) -> None:
        """Take down what a cache wrote, and what it held."""
        rows = len(made.outputs)
        done = len(result.outputs)
        result.outputs += made.outputs
        kept = result.counts.get("kept_tokens", 0.0)
        result.counts["kept_tokens"] = (kept * done + made.kept_tokens * rows) / (done + rows)
        result.counts["kv_cache_bytes"] = max(result.counts.get("kv_cache_bytes", 0.0), float(made.bytes))
        result.counts["seen_tokens"] = float(self.context + self.new_tokens - 1)

    def compared(self, result: Quality, reference: Quality | None) -> None:
        """Where what was written leaves the baseline's."""
        base = reference.outputs if reference else result.outputs
        result.metrics["token_agreement"] = [
            first_divergence(a, b) / max(len(b), 1) for a, b in zip(result.outputs, base, strict=True)
        ]

    def _texts(self, source: Source, ids: Tensor, outputs: list[list[int]]) -> list[dict[str, str]]:
        decode = source.tokenizer.decode
        return [
            {
                "prompt": "..." + decode(row[: self.context][-SHOWN_TOKENS:]),
                "output": decode(output),
                "true": decode(row[self.context :]),
            }
            for row, output in zip(ids[:2].tolist(), outputs[:2], strict=True)
        ]

    def gates(
        self, technique: KVCache, prepared: KVCachePrepared, ids: Tensor, context: int, result: Quality
    ) -> Iterator[Gate]:
        """Finite scores, full lengths, and the mask oracle on rows of `ids` whose first `context` are read at once."""
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
        behind = ids.shape[1] - context
        steps = min(behind - 1, GATE_STEPS)
        rows, context = ids[: min(self.batch, GATE_ROWS)], min(context, GATE_CONTEXT)
        # the sizes of the scored job, so that the budget is what it is there
        cache = technique.cache(prepared, len(rows), context, behind)
        judge = kv_rounding.gate if any(isinstance(a, kv.LossyLayer) for a in cache.layers) else kv_oracle.gate
        yield judge(prepared.model, cache, rows[:, : context + steps], context)
