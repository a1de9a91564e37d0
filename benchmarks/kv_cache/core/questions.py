"""Questions about a long context: the answer has to be read through what a cache has kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, ClassVar

from pydantic import Field

from bench.errors import UsageError
from bench.families.kv_cache import KVCache, KVCacheJob, KVCachePrepared
from bench.families.kv_cache_workload import KVCacheWorkload
from bench.models import Source
from bench.technique import Axis, Prepared, Technique
from bench.workload import Built, Quality, Work
from benchmarks.kv_cache.core import answers

PLANNED = {True: 10, False: 24}
"""Tokens read one by one before an answer, if query-aware or not: for the plan, which knows no tokenizer [tokens]."""
SHOWN_TOKENS = 48
"""End of a prompt that is shown beside its answer [tokens]."""

SOLVED = ("exact_match", "answer_f1", "answer_score")
"""Metrics that tell whether the baseline can do a task at all."""

Item = dict[str, Any]
"""A prompt's parts and its answer as ids, and what else is known of it: see `item`."""


class QuestionWorkload(KVCacheWorkload):
    """Base of the workloads that ask: each item is a context, a question, the answer's beginning, and the answer.

    The prompt is all but the answer, and has `context` tokens. Its end is read token by token through the cache, after
    the rest was read at once and compressed. The end is the answer's beginning if `query_aware`, and the question as
    well if not; it is as long for every item as the longest one's. So both ways read the same texts in a cache for
    the same number of tokens, and no token of an answer is predicted before tokens are let go.

    What is written is greedy. Prompts are plain text, without a chat template.
    """

    primary: ClassVar[Mapping[Axis, str]] = {"quality": "answer_nll"}
    smallest: ClassVar[Mapping[str, int]] = {"context": 512, "items": 1, "timed_contexts": 3}
    query_aware: bool = False
    """Whether the cache sees the question before it decides what to keep."""
    usable: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the items that the full cache must solve; below it the figures say nothing of what was lost."""
    begin: bool = True
    """Put the begin-of-text token in front of each context, where the model's tokenizer does so."""

    @property
    def label(self) -> str:
        return f"question {'before' if self.query_aware else 'behind'} the eviction"

    def built(self, scored: Sequence[Item], timed: Sequence[Item]) -> Built:
        """Rows of ids, and what is known of them.

        Raises:
            UsageError: an answer is longer than what is written.
        """
        longest = max(len(one["answer"]) for one in scored)
        if longest >= self.new_tokens:
            raise UsageError(
                f"an answer takes {longest} tokens in this model's vocabulary, and new_tokens={self.new_tokens}; "
                f"give new_tokens={longest + 1} at least, to see where it ends"
            )
        late = max(len(one["cue"]) + (0 if self.query_aware else len(one["question"])) for one in [*scored, *timed])
        least = min(len(prompt(one)) for one in [*scored, *timed])
        if least <= late:
            raise UsageError(
                f"a prompt has {least} tokens, of which {late} are read one by one; give shortest={late + 8} at least"
            )
        # what stands behind an answer is never looked at
        rows = [prompt(one) + one["answer"] + one["answer"][-1:] * self.new_tokens for one in scored]
        return {
            "scored": [row[: len(prompt(one)) + self.new_tokens] for row, one in zip(rows, scored, strict=True)],
            "timed": [prompt(one) for one in timed],
            "late": late,
            "items": [
                {key: one[key] for key in one if key not in PARTS} | {"tokens": len(one["answer"])} for one in scored
            ],
        }

    def burst(self, built: Built, index: int, seed: int, device: str) -> KVCacheJob:
        job = super().burst(built, index, seed, device)
        split = job.contexts.shape[1] - built["late"]
        return replace(job, contexts=job.contexts[:, :split], questions=job.contexts[:, split:])

    def work(self) -> tuple[Work, Work, Work]:
        late = PLANNED[self.query_aware]
        one = Work(prefill=self.context, decode=late + self.new_tokens)
        return Work(), one.times(self.batch), one.times(2 * self.items) + self.gate_work(late + self.new_tokens)

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
        behind = built["late"] + self.new_tokens
        result = Quality(metrics={"answer_nll": []})
        likelihoods: list[list[float]] = []
        for rows, padding in self.batches(built, source.device):
            split = rows.shape[1] - behind
            job = KVCacheJob(
                contexts=rows[:, :split],
                questions=rows[:, split : -self.new_tokens],
                padding=padding,
                max_new_tokens=self.new_tokens,
                seed=seed,
            )
            self.continued(technique.generate(prepared, job), job, result)
            likelihoods += technique.score(prepared, rows, split, padding=padding).logprobs[:, built["late"] :].tolist()
        decode = source.tokenizer.decode
        ends = set(source.tokenizer.all_special_ids)
        written = [decode(list(takewhile(lambda token: token not in ends, output))) for output in result.outputs]
        for one, said, logprobs in zip(built["items"], written, likelihoods, strict=True):
            result.metrics["answer_nll"].append(-sum(logprobs[: one["tokens"]]) / one["tokens"])
            for name, value in self.judged(said, one).items():
                result.metrics.setdefault(name, []).append(value)
        self.compared(result, reference)
        result.notes = self.note(reference or result, built)
        result.texts = [
            {
                "prompt": "..." + decode(row[: -self.new_tokens][-SHOWN_TOKENS:]),
                "output": said,
                "true": ", ".join(one["answers"]),
            }
            for row, said, one in zip(built["scored"][:2], written, built["items"], strict=False)
        ]
        result.gates = list(self.gates(technique, prepared, built, behind, result, source.device))
        return result

    def judged(self, written: str, one: Item) -> dict[str, float]:
        """Metric -> figure of what was written as an item's answer."""
        found = answers.share_found(written, one["answers"])
        return {"exact_match": float(found == 1), "answers_found": found}

    def note(self, baseline: Quality, built: Built) -> dict[str, str]:
        """What the reader should know: above all where the full cache itself fails."""
        name = next(name for name in SOLVED if name in baseline.metrics)
        share = sum(baseline.metrics[name]) / len(baseline.metrics[name])
        if share >= self.usable:
            return {}
        what = (
            f"the full cache itself has {name} {share:.2f}, and {self.usable:.2f} is asked for: quality figures of "
            "this workload say nothing of what a cache lost"
        )
        return {what: "use a more capable model, or make the task easier: a smaller context, fewer facts"}


PARTS = frozenset({"context", "question", "cue", "answer"})
"""What of an item is ids."""


def item(context: list[int], question: list[int], cue: list[int], answer: list[int], accepted: Sequence[str]) -> Item:
    """An item: the prompt's parts and the answer as ids, and the answers as texts."""
    return {"context": context, "question": question, "cue": cue, "answer": answer, "answers": list(accepted)}


def prompt(one: Item) -> list[int]:
    """Ids of what is read before the answer."""
    ids: list[int] = one["context"] + one["question"] + one["cue"]
    return ids
