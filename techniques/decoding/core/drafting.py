"""A draft model: loaded beside the target, and asked for the next few tokens of every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from bench.families import attention
from bench.families import cache as kv
from bench.families.decoding import Batch, DecodingJob, DecodingPrepared, best_of
from bench.families.ragged import keep, lengths, read_rows
from bench.models import Sources

Stop = Callable[[Tensor, Tensor], bool]
"""Logits `(1, vocabulary)` and the id `(1,)` drawn from them -> whether the draft ends with this token."""


@dataclass
class Draft:
    """What drafts for a batch, beside the target's cache."""

    model: nn.Module
    cache: Cache
    """Of the draft model: a beginning of each row's text."""
    length: int = 0
    """Tokens of the next draft, where a technique adapts it."""


def prepare(prepared: DecodingPrepared, sources: Sources, packed: bool = True) -> DecodingPrepared:
    """Load the run's draft model beside the target.

    Args:
        packed: whether it attends as our loop's models do; the library's loop keeps its own attention.

    Raises:
        Unsupported: there is none, or it does not speak the target's vocabulary.
    """
    model = sources.helper("draft").model()
    if packed:
        attention.pack(model)
    prepared.helpers = (model,)
    prepared.components["draft_kv_cache"] = lambda: kv.tensors(_cache(prepared))
    return prepared


def _cache(prepared: DecodingPrepared) -> Cache | None:
    draft = prepared.batch.draft if prepared.batch else None
    return draft.cache if isinstance(draft, Draft) else None


def begin(prepared: DecodingPrepared, batch: Batch, ahead: int) -> Draft:
    """Let the draft model read the prompts."""
    (model,) = prepared.helpers
    longest = max(len(row.ids) for row in batch.rows)
    cache = prepared.caches.take(model, len(batch.rows), longest, ahead)
    read_rows(model, [row.known[:-1] for row in batch.rows], cache)
    return Draft(model, cache)


def propose(
    prepared: DecodingPrepared,
    batch: Batch,
    job: DecodingJob,
    most: int,
    stop: Stop | None = None,
    keep_last: bool = True,
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Draft up to `most` tokens for every row, as many as it has room for beside one of the target's.

    Args:
        stop: asked for a batch of one, whether the draft ends with this token.
        keep_last: whether the token that ends it is part of it. Without it, sampling loses the target's law.

    Returns:
        Ids per row, `(g_i,)`, and what they were drawn from, `(g_i, vocabulary)` over the target's vocabulary; None
        where greedy.
    """
    model, cache, rows = batch.draft.model, batch.draft.cache, batch.rows
    width = prepared.model.config.vocab_size
    held = [min(count, row.length - 1) for count, row in zip(lengths(cache, len(rows)), rows, strict=True)]
    keep(cache, held)
    feeds = [row.known[count:] for count, row in zip(held, rows, strict=True)]
    room = [min(most, max(row.room - 1, 0)) for row in rows]
    drafted: list[list[Tensor]] = [[] for _ in rows]
    laws: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(room)):
        # models of one vocabulary may pad their heads to different widths
        logits = [one[:, :width] for one in read_rows(model, feeds, cache)]
        for index, (row, one) in enumerate(zip(rows, logits, strict=True)):
            if step >= room[index]:
                feeds[index] = row.last  # it waits for the others
                continue
            if job.temperature == 0:
                feeds[index] = best_of(one)
            else:
                law = job.distribution(one)
                feeds[index] = torch.multinomial(law, 1, generator=row.generator)[:, 0]
                laws[index].append(torch.nn.functional.pad(law, (0, width - law.shape[-1])))
            drafted[index].append(feeds[index])
        if stop is not None and stop(logits[0], feeds[0]):
            drafted[0] = drafted[0] if keep_last else drafted[0][:-1]
            break
    none = rows[0].ids[:0]
    ids = [torch.cat([none, *tokens]) for tokens in drafted]
    if job.temperature == 0:
        return ids, None
    return ids, [
        torch.cat(law[: len(tokens)]) if len(tokens) else none[None] for law, tokens in zip(laws, ids, strict=True)
    ]
