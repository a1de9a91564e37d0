"""Completions behind their prompts: how they are laid out for a model, and what it makes of their tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

IGNORED = -100
"""What `cross_entropy` is told to leave out."""
PAD = 0
"""Any id does: padding is masked."""
SHORT = 64
"""Texts up to this length attend by plain products on a CPU [tokens]."""


@dataclass(frozen=True)
class Completions:
    """Texts whose completions all begin at one column: prompts padded left, completions padded right."""

    ids: Tensor
    """`(rows, seq)`, int64."""
    completion: Tensor
    """Which of the last columns are a completion's tokens, `(rows, completion)`, bool."""
    attention: Tensor | None = None
    """Which columns are text, `(rows, seq)`, bool; None where nothing is padded."""

    @property
    def tokens(self) -> Tensor:
        """Tokens of each completion, `(rows,)`, int64."""
        return self.completion.sum(-1)

    def rows(self, which: slice, longest: int) -> Completions:
        """Some of the rows, without the columns behind the longest completion of them [tokens]."""
        end = self.ids.shape[1] - self.completion.shape[1] + longest
        attention = None if self.attention is None else self.attention[which, :end]
        return Completions(self.ids[which, :end], self.completion[which, :longest], attention)


def laid_out(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: str) -> Completions:
    """Texts of prompt and completion, padded to one shape."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, behind = left - len(prompt), right - len(completion)
        ids.append([PAD] * before + [*prompt, *completion] + [PAD] * behind)
        mask.append([False] * before + [True] * (len(prompt) + len(completion)) + [False] * behind)
    text = torch.tensor(mask)
    attention = None if bool(text.all()) else text.to(device)
    return Completions(torch.tensor(ids, device=device), text[:, left:].to(device), attention)


def completion_logits(model: nn.Module, texts: Completions) -> Tensor:
    """Logits `(rows, completion, vocabulary)` from which each token of the completions is drawn.

    One forward pass for all rows. No logits are made for the prompts, so the largest tensor does not grow with them.
    """
    seq, width = texts.ids.shape[1], texts.completion.shape[1]
    padded = {}
    if texts.attention is not None:
        positions = (texts.attention.long().cumsum(-1) - 1).clamp(min=0)
        padded = {"attention_mask": texts.attention, "position_ids": positions}
    # the column before a token predicts it. An index, no slice: a slice of the hidden states is not contiguous, and
    # the head would be copied for every row to multiply it
    columns = torch.arange(seq - width - 1, seq - 1, device=texts.ids.device)
    with _attention(texts):
        logits: Tensor = model(input_ids=texts.ids, use_cache=False, logits_to_keep=columns, **padded).logits
    return logits


def _attention(texts: Completions) -> contextlib.AbstractContextManager[None]:
    """The kernel of attention, chosen by shape alone: the same for policy and reference, with gradients or without.

    In 16 bits the flash kernel's backward pass on a CPU takes ten times its forward pass where texts are short.
    """
    short = texts.ids.device.type == "cpu" and texts.ids.shape[1] <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else contextlib.nullcontext()


def picked_logprobs(logits: Tensor, texts: Completions) -> Tensor:
    """Log-probabilities `(rows, completion)` of the completions' tokens, float32, 0 behind a completion's end.

    Args:
        logits: `(rows, completion, vocabulary)`, of `completion_logits`.
    """
    targets = texts.ids[:, -texts.completion.shape[1] :].masked_fill(~texts.completion, IGNORED)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape)


def token_logprobs(model: nn.Module, texts: Completions) -> Tensor:
    """Log-probabilities `(rows, completion)` of the completions' tokens, each given all before it."""
    return picked_logprobs(completion_logits(model, texts), texts)


def completion_logprobs(model: nn.Module, texts: Completions) -> Tensor:
    """Log-probability of each completion behind its prompt, summed over its tokens, `(rows,)`, float32."""
    return token_logprobs(model, texts).sum(-1)
