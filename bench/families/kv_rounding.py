"""The gate of caches that round: every element within half a step of what went in, and attention over just that.

The mask oracle compares with a model that never forgets, to rounding errors; a cache of few bits is meant to be
further off. What it may not do is to be off by more than it says, or to attend to anything else than it holds:

* *elements*: at every step, each key and value that the layer restores lies within half of its stated step of the
  true one;
* *heads*: each head's output is plain attention over all that the layer restores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families.kv_oracle import (
    Observed,
    Reference,
    Witness,
    attending,
    attention_of,
    mask_of,
    read_stepwise,
)
from bench.workload import Gate

HEADS = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest error of a head's output, over the output it would have if all values had one sign: kernels for codes round
the products of queries and keys to the model's type."""
SLACK = 1e-3
"""What an error may exceed half a step by, as a share of it: the arithmetic of restoring."""


class Restored(Observed):
    """A cache at work, whose layers are held against what went in."""

    worst = 0.0
    """Largest error of an element, in half steps."""
    rounded = 0
    """Most elements of one layer that are not exact."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        made = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        if isinstance(layer, kv.LossyLayer):
            for given, restored, steps in zip(
                super().attended(layer_idx), layer.restored(), layer.steps(), strict=True
            ):
                if not given.shape == restored.shape == steps.shape:
                    self.worst = torch.inf  # other tokens than went in
                    break
                # a restored element is rounded once more, to the cache's own type
                largest = torch.maximum(given.float().abs(), restored.float().abs())
                half = steps.float() / 2 + largest * torch.finfo(given.dtype).eps
                error = (restored.float() - given.float()).abs()
                self.worst = max(self.worst, float((error / half.clamp(min=1e-30)).max()))
                self.rounded = max(self.rounded, int((steps > 0).sum()))
        return made

    def attended(self, layer: int) -> tuple[Tensor, Tensor]:
        held = self.layers[layer]
        if isinstance(held, kv.LossyLayer) and self.worst < torch.inf:
            return held.restored()
        return super().attended(layer)


def gate(model: Any, cache: Cache, ids: Tensor, context: int) -> Gate:
    """Read `ids` (batch, tokens) through the empty cache, token by token behind the context, and compare."""
    observed = Restored(cache)
    witness = Witness(attention_of(model), observed, Reference(context, observed.visible))
    with attending(model, witness, mask_of(model)):
        read_stepwise(model, ids, observed, context)
    counted = cache.get_seq_length() == ids.shape[1]
    allowed = HEADS[model.dtype]
    return Gate(
        "rounding",
        counted and observed.worst <= 1 + SLACK and witness.worst <= allowed,
        f"{ids.shape[1] - context} steps behind {context} tokens in {str(model.dtype).removeprefix('torch.')}: "
        f"elements off by {observed.worst:.4g} half steps (allowed 1), up to {observed.rounded} of a layer rounded; "
        f"heads off by {witness.worst:.2g} of attention over what is held (allowed {allowed:.2g})"
        + ("" if counted else f"; {cache.get_seq_length()} of {ids.shape[1]} tokens are counted"),
    )
