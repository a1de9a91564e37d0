"""The attention of layers that let tokens go: it hands the query to the layer, which knows what it holds.

The library's attention functions see keys and values, never the cache. So a layer's `update` returns keys that point
back to it. A prompt attends to itself in full; only then does its layer keep what it wants, so that the dense keys and
values of one layer exist at a time.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from bench.errors import Unsupported
from bench.families import attention, own_attention
from bench.families import cache as kv
from bench.families.attention import packed_sdpa
from bench.technique import Phase

NAME = "linked_sdpa"
LINK = "linked_layer"


class Linked(Protocol):
    """A layer that attends for itself behind the prompt."""

    reads_prompt: bool
    """From the prompt's `update` until `read_prompt`."""
    phase: Phase
    """Marks the time that `read_prompt` takes."""

    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        """Keep what is wanted of a prompt that has attended to itself: `(batch, heads, tokens, head_dim)` each."""

    def read_token(self, module: Any, query: Tensor, scaling: float) -> Tensor:
        """Attend with `(batch, heads, 1, head_dim)` to all that is held -> `(batch, 1, heads, head_dim)`."""


def linked(keys: Tensor, layer: Linked) -> Tensor:
    """A view of the keys that points to the layer; the stored tensor itself would make a cycle."""
    view = keys.view_as(keys)
    setattr(view, LINK, layer)
    return view


def linked_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as `transformers` calls it; by `packed_sdpa` where the keys point nowhere.

    Args:
        query: `(batch, heads, new, head_dim)`.
        key: `(batch, kv_heads, new, head_dim)`, as `update` returned it; `value` alike.

    Returns:
        `(batch, new, heads, head_dim)`, and no weights.
    """
    layer: Linked | None = getattr(key, LINK, None)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer is not None and not layer.reads_prompt:
        return layer.read_token(module, query, scaling), None
    out, _ = packed_sdpa(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if layer is not None:
        with layer.phase("choose"):
            layer.read_prompt(query, key, value, scaling)
    return out, None


def check_layers(config: Any) -> int:
    """The number of layers, where each may let go of any token.

    Raises:
        Unsupported: a layer is no attention layer, or attends to a sliding window.
    """
    sliding = kv.sliding_layers(config)
    if any(sliding):
        window = config.get_text_config(decoder=True).sliding_window
        raise Unsupported(
            f"{sum(sliding)} of {len(sliding)} layers of {config.model_type} attend to a sliding window already, of "
            f"{window} tokens, and hold no more than that; give a model whose layers all attend to the whole text"
        )
    return len(sliding)


def link(model: Any) -> None:
    """Let a model that attends by `packed_sdpa` attend by `linked_sdpa`.

    Raises:
        Unsupported: it attends in another way, or its attention is more than a softmax of products.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if own_attention.fits(model):
        own_attention.attend_by(model, attention.marked(linked_sdpa))
        return
    used = model.config._attn_implementation
    if not model._can_set_attn_implementation() or used not in (attention.NAME, NAME):
        raise Unsupported(
            f"such a cache needs a model whose attention can be replaced; {model.config.model_type} attends by "
            f"{used!r} in its own code, or has no key/value cache"
        )
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise Unsupported("attention with capped logits (attn_logit_softcapping) is not supported by such a cache")
    AttentionInterface.register(NAME, attention.marked(linked_sdpa))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
