"""Rollouts: completions that a policy writes, what they are worth, and how far they are from the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.families import cache as kv
from bench.families.completions import Completions, laid_out
from bench.families.texts import padded_left

HELD_LOGITS = 2**25
"""Logits of one network that are held at once where divergences are summed: 128 MiB in float32."""


@dataclass(frozen=True)
class Rollout:
    """How completions are sampled, and what they are worth."""

    limit: int
    """Tokens of a completion at most; one that reaches it has no end-of-text id [tokens]."""
    stop: int | None
    """The end-of-text id: the last token of a completion that ends before the limit."""
    banned: Tensor
    """Ids that are never drawn, `(banned,)`."""
    reward: Callable[[str], float]
    """What a completion's text is worth."""
    openings: tuple[str, ...] = ()
    """All different ones, in the order of their file: an error gives their number."""


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], rollout: Rollout, generator: torch.Generator
) -> list[list[int]]:
    """A completion of each prompt, drawn at temperature 1; prompts may differ in length.

    Raises:
        Unsupported: prompt and completion do not fit the model's context.
    """
    device = rollout.banned.device
    new, padding = padded_left(prompts, str(device))
    start, longest = padding[:, None], new.shape[1]
    columns = torch.arange(longest + rollout.limit, device=device)[None]
    text = columns >= start  # (rows, longest + limit)
    positions = (columns - start).clamp(min=0)
    cache = kv.preallocated(model.config, longest + rollout.limit)
    drawn: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    seen = 0
    while len(drawn) < rollout.limit and not bool(ended.all()):
        read = seen + new.shape[1]
        logits = model(
            input_ids=new,
            attention_mask=text[:, :read],
            position_ids=positions[:, seen:read],
            past_key_values=cache,
            use_cache=True,
            # an index, no slice, as in `completion_logits`
            logits_to_keep=torch.tensor([new.shape[1] - 1], device=device),
        ).logits[:, -1]
        new = drawn_ids(permitted(logits, rollout.banned), generator)
        drawn.append(new)
        if rollout.stop is not None:
            ended |= new[:, 0] == rollout.stop
        seen = read
    return [_until(row, rollout.stop) for row in torch.cat(drawn, -1).tolist()]


def permitted(logits: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities `(..., vocabulary)`, float32, of a draw that leaves out the banned ids."""
    return logits.float().index_fill(-1, banned, -torch.inf).log_softmax(-1)


def drawn_ids(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """One id per row `(rows, 1)`, drawn from log-probabilities `(rows, vocabulary)`.

    By one random number a row, looked up in the cumulated probabilities; `torch.multinomial` draws one for every id
    of the vocabulary, a fifth of the time of a decoding step.
    """
    below = logprobs.double().exp().cumsum(-1)
    height = torch.rand((len(below), 1), generator=generator, device=below.device, dtype=torch.float64) * below[:, -1:]
    # right: an id without probability is stepped over
    return torch.searchsorted(below, height, right=True).clamp(max=below.shape[1] - 1)


def _until(ids: list[int], stop: int | None) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def scored(rollout: Rollout, texts: Sequence[str], openings: Sequence[str]) -> list[float]:
    """The reward of each text.

    Args:
        openings: what each text goes on from, as an error is to name it.

    Raises:
        BenchError: a reward is not a finite number.
    """
    rewards = [float(rollout.reward(text)) for text in texts]
    for reward, text, opening in zip(rewards, texts, openings, strict=True):
        if not math.isfinite(reward):
            within = [(len(known), n) for n, known in enumerate(rollout.openings, 1) if known in opening]
            number = f"opening {max(within)[1]}, " if within else ""
            raise BenchError(
                f"the reward of a completion of {number}{opening[-60:]!r} is {reward}, a finite number is needed; it "
                f"begins {text[:40]!r}"
            )
    return rewards


@torch.no_grad()
def divergence(
    policy: Callable[[Completions], Tensor],
    reference: Callable[[Completions], Tensor],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    banned: Tensor,
    vocabulary: int,
) -> list[float]:
    """Of each completion, KL(policy || reference) of the next token, summed over its tokens [nat].

    Its mean over completions that the policy drew is an estimate of the KL divergence between the two distributions
    over completions, without bias and with less noise than that of the log-ratio of what was drawn: at every token the
    whole vocabulary is summed over.

    Args:
        policy: logits `(rows, completion, vocabulary)` of some texts.
        reference: the same.
        banned: ids that were not to be drawn, `(banned,)`.
        vocabulary: logits per token; so many texts are read at once that they stay within bounds.
    """
    longest = max(map(len, prompts)), max(map(len, completions))
    together = max(1, HELD_LOGITS // (longest[1] * vocabulary))
    found: list[float] = []
    for row in range(0, len(prompts), together):
        texts = laid_out(prompts[row : row + together], completions[row : row + together], str(banned.device))
        ours = permitted(policy(texts), banned)
        theirs = permitted(reference(texts), banned)
        # banned ids: 0 * (-inf - -inf)
        each = (ours.exp() * (ours - theirs)).index_fill(-1, banned, 0.0).sum(-1)  # (rows, completion)
        found += each.masked_fill(~texts.completion, 0.0).sum(-1).tolist()
    return found


def distinct(completions: Sequence[Sequence[int]], size: int = 2) -> float:
    """Share of the runs of `size` tokens in some completions that are different ones (Li et al. 2016, distinct-n).

    Between as many completions of one prompt it falls where a policy writes the same each time. 1 where no completion
    is that long.
    """
    runs = [tuple(ids[i : i + size]) for ids in completions for i in range(len(ids) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(ids: Sequence[int], size: int = 3) -> float:
    """Share of a completion's runs of `size` tokens that stood in it before; 0 where it is shorter."""
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
