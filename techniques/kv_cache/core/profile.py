"""Profiling heads behind a prompt: which tokens each could do without, by the attention they received."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.conversation import special_ids
from bench.errors import Unsupported
from techniques.kv_cache.core.scores import Seen

SPECIAL, PUNCTUATION = 1, 2
"""Kinds of tokens; 0 is any other."""
Part = Literal["special", "punctuation", "frequent", "local"]


@dataclass(frozen=True)
class Received:
    """Attention that the tokens of a prompt received, per query head: `(batch, kv_heads, group, tokens)`, float32."""

    total: Tensor
    """From all later queries, as a mean over all queries of the prompt."""
    near: Tensor
    """Of that, from queries fewer than `window` tokens behind."""


def received(seen: Seen, window: int) -> Received:
    """One pass over all queries of a prompt, in blocks of rows."""
    batch, heads, tokens, _ = seen.query.shape
    kv_heads = seen.keys.shape[1]
    total = seen.keys.new_zeros(batch, kv_heads, heads // kv_heads, tokens, dtype=torch.float32)
    near = torch.zeros_like(total)
    for weights in seen.weights():
        rows, visible = weights.shape[-2:]
        own = torch.arange(visible - rows, visible, device=weights.device)[:, None]
        first = max(visible - rows - window + 1, 0)  # what is older lies within no row's window
        inside = torch.arange(first, visible, device=weights.device) > own - window
        total[..., :visible] += weights.sum(-2) / tokens
        near[..., first:visible] += (weights[..., first:] * inside).sum(-2) / tokens
    return Received(total, near)


def sufficient(recovered: Tensor, least: float) -> Tensor:
    """The number, from 1 on, of the first of the growing sets that recovers as much, `(batch, kv_heads)`.

    Args:
        recovered: share of the attention, `(batch, kv_heads, sets)`; one more set is everything.
        least: 1 asks for everything, whatever a sum is rounded to.
    """
    enough = (recovered >= least) & (least < 1)
    return pad(enough, (0, 1), value=True).int().argmax(-1) + 1


def affordable(recovered: Tensor, slots: Tensor, room: int) -> Tensor:
    """As `sufficient`, with the highest recovery for all heads of a row at which they fit.

    Args:
        slots: that the sets take, everything included, `(batch, kv_heads, sets + 1)` [slots].
        room: for all heads of a row [slots].

    Raises:
        Unsupported: no sets fit.
    """
    levels = recovered.flatten(1).sort(descending=True).values  # (batch, levels)
    tried = torch.cat([levels.new_full((len(levels), 1), torch.inf), levels], 1)
    enough = recovered[:, None] >= tried[..., None, None]  # (batch, levels + 1, kv_heads, sets)
    chosen = pad(enough, (0, 1), value=True).int().argmax(-1)
    taken = slots[:, None].expand(-1, tried.shape[1], -1, -1).gather(-1, chosen[..., None])[..., 0].sum(-1)
    fits = taken <= room
    if not bool(fits.any(-1).all()):
        heads = recovered.shape[1]
        least = -(-int(taken[:, -1].max()) // heads)
        raise Unsupported(f"{least} tokens a head are the fewest that a layer's heads could keep, {room // heads} fit")
    first = fits.int().argmax(-1)[:, None, None].expand(-1, 1, recovered.shape[1])
    return chosen.gather(1, first)[:, 0] + 1


def share_of(share: float, tokens: int) -> int:
    """A share of the tokens, one at least [tokens]."""
    return max(1, round(share * tokens))


def members(part: Part, kinds: Tensor, marks: Tensor, positions: Tensor, tokens: int, share: float) -> Tensor:
    """Which held tokens belong to a part of a policy: `(batch, kv_heads, held)`.

    Args:
        kinds: of the tokens, `SPECIAL`, `PUNCTUATION` or 0, `(batch, kv_heads, held)`.
        marks: attention received so far, minus infinity where nothing is held.
        positions: in the text, -1 where nothing is held.
        tokens: seen so far [tokens].
        share: of them that are frequent, or local.
    """
    if part == "special":
        return kinds == SPECIAL
    if part == "punctuation":
        return kinds == PUNCTUATION
    count = share_of(share, tokens)
    if part == "local":
        return positions >= tokens - count
    best = marks.topk(min(count, marks.shape[-1]), -1).indices
    return torch.zeros_like(kinds, dtype=torch.bool).scatter_(-1, best, True) & (positions >= 0)


def kinds_of_ids(tokenizer: Any, vocabulary: int) -> Tensor:
    """What each id of a vocabulary is, int8 `(vocabulary,)`: 1 special, 2 punctuation and nothing else, 0 otherwise.

    Markers of a chat are special, whether the tokenizer lists them by name or among its added tokens alone.
    """
    kinds = torch.zeros(vocabulary, dtype=torch.int8)
    texts = tokenizer.batch_decode([[token] for token in range(min(vocabulary, len(tokenizer)))])
    for token, text in enumerate(texts):
        signs = text.strip()
        if signs and all(unicodedata.category(sign).startswith("P") for sign in signs):
            kinds[token] = PUNCTUATION
    kinds[[token for token in special_ids(tokenizer) if token < vocabulary]] = SPECIAL
    return kinds
