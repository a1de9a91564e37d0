"""An output head cut to the tokens that a text mostly consists of: a small draft spends most of its time in its head.

FR-Spec (Zhao et al. 2025, section 4) drafts from a frequency-ranked part of the vocabulary; the target still verifies
with all of it, so the output keeps its law.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ReducedHead(nn.Module):
    """Logits over the whole vocabulary, -inf where the token is none of those kept."""

    def __init__(self, head: nn.Linear, kept: Tensor) -> None:
        """Copy the rows of `head` that belong to the ids `kept`, `(tokens,)`."""
        super().__init__()
        self.width = head.out_features
        self.weight = nn.Parameter(head.weight.detach()[kept].clone(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias.detach()[kept].clone(), requires_grad=False)
        self.register_buffer("kept", kept.clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., hidden)` -> `(..., vocabulary)`."""
        few = nn.functional.linear(hidden, self.weight, self.bias)
        return few.new_full((*few.shape[:-1], self.width), -torch.inf).index_copy_(-1, self.kept, few)


def reduce(model: Any, kept: Tensor) -> None:
    """Give a causal language model a head that knows only these tokens, for drafting."""
    model.set_output_embeddings(ReducedHead(model.get_output_embeddings(), kept.to(model.device)))
