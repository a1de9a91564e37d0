"""Key/value caches: a fixed model continues long contexts; what differs is what it still remembers of them.

The loop is shared: a prefill that attends to the whole context and emits the first token, then one token a step.
A technique gives the cache, and nothing else.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from bench.errors import Unsupported
from bench.families import attention
from bench.families import cache as kv
from bench.models import Sources
from bench.registry import stem
from bench.technique import Axis, Job, Prepared, Step, Technique, unmarked

QUERY_AWARE, QUERY_AGNOSTIC = "query-aware", "query-agnostic"
"""Labels: whether a cache lets go by what queries attended to, those of the context's end and of a question there."""


@dataclass(frozen=True, kw_only=True)
class KVCacheJob(Job):
    """Continue each context, greedily."""

    contexts: Tensor
    """Ids `(batch, context)`."""
    max_new_tokens: int
    questions: Tensor | None = None
    """Ids `(batch, question)` that are read behind the context, one by one, through what the cache then holds."""
    padding: Tensor | None = None
    """Where contexts have different lengths: ids in front of each row that are none, `(batch,)` [tokens]."""

    read_once: bool = False
    """Keep the cache behind the contexts, and go on from a copy of it in the next job with the same ones."""

    @property
    def late(self) -> int:
        """Tokens read one by one before the first is emitted [tokens]."""
        return 0 if self.questions is None else self.questions.shape[1]

    def asks_as(self, other: KVCacheJob) -> bool:
        """Whether another job reads the same ids, for as many new tokens."""
        pairs = [(self.contexts, other.contexts), (self.questions, other.questions), (self.padding, other.padding)]
        return self.max_new_tokens == other.max_new_tokens and all(
            a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs
        )


@dataclass(frozen=True)
class Reading:
    """What a job has read, and the cache behind it."""

    job: KVCacheJob
    cache: Cache
    ids: Tensor
    """The first token of each row, `(batch, 1)`."""


@dataclass
class KVCachePrepared(Prepared):
    """The model, and the cache that is in use."""

    cache: Cache | None = None
    reading: Reading | None = None

    def holdings(self) -> Mapping[str, Any]:
        return {**super().holdings(), "kv_cache": kv.tensors(self.cache)}

    def close(self) -> None:
        super().close()
        self.cache = self.reading = None


@dataclass(frozen=True)
class Continuation:
    """What a cache made of contexts: emitted ids per row, and what it held at the end."""

    outputs: list[list[int]]
    kept_tokens: float
    """Mean over rows, layers and heads [tokens]."""
    bytes: int
    """Of storage [B]."""


@dataclass(frozen=True)
class Scores:
    """What a cache makes of a true continuation, per token: `(batch, tokens)` each."""

    logprobs: Tensor
    """Of the true tokens [nat]."""
    hits: Tensor
    """Whether the true token was the likeliest."""
    divergences: Tensor | None = None
    """KL divergence of the next token's distribution from the full cache's, where that was given [nat]."""
    agreements: Tensor | None = None
    """Whether the likeliest token is also the full cache's, where that was given."""


class KVCache(Technique):
    """Base of the techniques that decide what the key/value cache keeps."""

    family: ClassVar[str] = "kv_cache"
    primary: ClassVar[Mapping[Axis, str]] = {
        "quality": "nll",
        "latency": "tpot",
        "memory": "kv_cache_bytes",
    }

    def prepare(self, sources: Sources) -> KVCachePrepared:
        """The unmodified model; a technique adds its checks."""
        model = sources.target.model()
        attention.pack(model)
        return KVCachePrepared(model)

    @abstractmethod
    def cache(self, prepared: KVCachePrepared, batch: int, context: int, new_tokens: int) -> Cache:
        """An empty cache for `batch` rows of `context` tokens each that go on for `new_tokens`.

        Layers that let tokens go derive from `EvictingLayer`: the context is attended to in full, then evicted.

        Raises:
            Unsupported: the model or the sizes do not allow it.
        """

    def padded_cache(self, prepared: KVCachePrepared, context: int, padding: list[int], new_tokens: int) -> Cache:
        """An empty cache for rows of `context` ids, of which the first `padding` are none, that go on for `new_tokens`.

        A cache of the library's layout leaves the padding to the mask; layers of our own must let each row go its way.

        Raises:
            Unsupported: the technique does not.
        """
        cache = self.cache(prepared, len(padding), context, new_tokens)
        if any(isinstance(layer, kv.EvictingLayer) for layer in cache.layers):
            raise Unsupported(
                f"{stem(type(self))} takes contexts of one length only, here some are {max(padding)} tokens shorter; "
                "give a batch of 1"
            )
        return cache

    @torch.inference_mode()
    def steps(self, prepared: KVCachePrepared, job: KVCacheJob) -> Iterator[Step]:
        batch, pad = len(job.contexts), job.padding
        # only the timing pass leaves the phases unmarked: memory and phases are those of a whole burst
        keeps = job.read_once and job.phase is unmarked
        read = prepared.reading if keeps else None
        if read is None or not job.asks_as(read.job):
            prepared.reading = None
            ids = self._read(prepared, job)
            yield Step("prefill", batch, tuple(row.clone() for row in ids))
            assert prepared.cache is not None
            read = Reading(job, prepared.cache, ids)
        ids = read.ids
        if keeps:
            prepared.reading = read
            # what all layers share, as the technique's tables, is not copied
            prepared.cache = copy.deepcopy(read.cache, {id(prepared.state): prepared.state})
            yield Step("resume", 0)
        del read
        for _ in range(job.max_new_tokens - 1):
            with job.phase("forward"), attention.marking(job.phase):
                ids = kv.read(prepared.model, ids, prepared.cache, padding=pad).argmax(-1)
            yield Step("decode", batch, tuple(row.clone() for row in ids))
        prepared.cache = None

    def _read(self, prepared: KVCachePrepared, job: KVCacheJob) -> Tensor:
        """Read contexts and questions into a new cache; the first token of each row, `(batch, 1)`."""
        pad = job.padding
        prepared.cache = self._empty(prepared, job.contexts, pad, job.late + job.max_new_tokens)
        for layer in prepared.cache.layers:
            if isinstance(layer, kv.EvictingLayer):
                layer.phase = job.phase
        with job.phase("prefill"):
            logits = kv.read(prepared.model, job.contexts, prepared.cache, padding=pad)
            for ids in () if job.questions is None else job.questions.split(1, 1):
                logits = kv.read(prepared.model, ids, prepared.cache, padding=pad)
            return logits.argmax(-1)

    def _empty(self, prepared: KVCachePrepared, contexts: Tensor, padding: Tensor | None, behind: int) -> Cache:
        """An empty cache for contexts `(batch, context)` that go on for `behind` tokens."""
        batch, context = contexts.shape
        if padding is None:
            return self.cache(prepared, batch, context, behind)
        return self.padded_cache(prepared, context, padding.tolist(), behind)

    def generate(self, prepared: KVCachePrepared, job: KVCacheJob) -> Continuation:
        """Continue the contexts to the end."""
        emitted: list[tuple[Tensor, ...]] = []
        kept, held = 0.0, 0
        for step in self.steps(prepared, job):
            emitted.append(step.outputs)
            if len(emitted) == job.max_new_tokens:
                assert prepared.cache is not None
                kept, held = kv.kept_tokens(prepared.cache, job.padding), kv.held_bytes(prepared.cache)
        outputs: list[list[int]] = [torch.cat(row).tolist() for row in zip(*emitted, strict=True)]
        return Continuation(outputs, kept, held)

    def logprobs(self, prepared: KVCachePrepared, ids: Tensor, context: int) -> Tensor:
        """Log-probabilities `(batch, tokens - context)` of what follows the context in `ids` (batch, tokens)."""
        return self.score(prepared, ids, context).logprobs

    @torch.inference_mode()
    def score(
        self,
        prepared: KVCachePrepared,
        ids: Tensor,
        context: int,
        full: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Scores:
        """Read the context at once and the true continuation token by token through the cache.

        The first token after the context is predicted by the prefill, before anything is evicted.

        Args:
            ids: `(batch, tokens)`, the context first.
            full: what the full cache predicts, `(batch, tokens - context, vocabulary)` (`full_logits`), to compare
                with.
            padding: ids in front of each row that are none, `(batch,)` [tokens].
        """
        total = ids.shape[1]
        prepared.cache = self._empty(prepared, ids[:, :context], padding, total - context)
        logits = kv.read(prepared.model, ids[:, :context], prepared.cache, padding=padding)[:, -1]
        scores, hits, divergences, agreements = [], [], [], []
        for place in range(context, total):
            if place > context:
                logits = kv.read(prepared.model, ids[:, place - 1 : place], prepared.cache, padding=padding)[:, -1]
            own = logits.float().log_softmax(-1)
            true = ids[:, place : place + 1]
            scores.append(own.gather(-1, true))
            hits.append(logits.argmax(-1, keepdim=True) == true)
            if full is not None:
                other = full[:, place - context].float().log_softmax(-1)
                divergences.append((other.exp() * (other - own)).sum(-1, keepdim=True))
                agreements.append((other.argmax(-1) == own.argmax(-1))[:, None])
        prepared.cache = None
        compared = (torch.cat(divergences, 1), torch.cat(agreements, 1)) if divergences else (None, None)
        return Scores(torch.cat(scores, 1), torch.cat(hits, 1), *compared)


@torch.inference_mode()
def full_logits(model: Any, ids: Tensor, context: int, padding: Tensor | None = None) -> Tensor:
    """What a cache that forgets nothing predicts behind the context: `(batch, tokens - context, vocabulary)`.

    The text is read in one pass, so that 16 bits round another way than token by token.
    """
    cache = kv.preallocated(model.config, ids.shape[1])
    return kv.read(model, ids[:, :-1], cache, keep=ids.shape[1] - context, padding=padding)
