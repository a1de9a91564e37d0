"""The attention that all arms of a family compute with: the library's, with grouped queries packed when decoding.

For a few query tokens the library asks torch for `enable_gqa`, which on a CPU reads every key once per query head.
Packed as the rows of one small matrix, the queries of a group read their keys once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, inf
from torch import bool as bool_
from torch.nn.functional import scaled_dot_product_attention

from bench.families import own_attention
from bench.technique import Phase, unmarked

NAME = "packed_sdpa"
FEW = 32
"""Query tokens that are packed at most; a prompt has enough rows of its own."""
Attend = Callable[..., tuple[Tensor, None]]
_marks: list[Phase] = [unmarked]


@contextlib.contextmanager
def marking(phase: Phase) -> Iterator[None]:
    """While a model runs, its attention is a phase of its own: the modules between hand no mark down to it."""
    _marks.append(phase)
    try:
        yield
    finally:
        _marks.pop()


def marked(attend: Attend) -> Attend:
    """An attention function whose time `marking` tells apart, as `attention`."""

    @functools.wraps(attend)
    def measured(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if _marks[-1] is unmarked:
            return attend(*args, **kwargs)
        with _marks[-1]("attention"):
            return attend(*args, **kwargs)

    return measured


def packed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as `transformers` calls it.

    Args:
        query: `(batch, heads, new, head_dim)`.
        key: `(batch, kv_heads, held, head_dim)`; `value` alike.

    Returns:
        `(batch, new, heads, head_dim)`, and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, new, _ = query.shape
    kv_heads = key.shape[1]
    if new > FEW or heads == kv_heads or (new > 1 and attention_mask is None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    group = heads // kv_heads
    rows = query.reshape(batch, kv_heads, group * new, -1)  # a head's tokens lie together
    mask = None if attention_mask is None else _packed(attention_mask, group, key)
    out = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def _packed(mask: Tensor, group: int, key: Tensor) -> Tensor:
    """What the packed rows may see, to be added to their scores: `(batch, 1, group * new, held)`.

    All layers of a forward pass are handed the same mask, so that it is made once and left with it.
    """
    held = key.shape[-2]
    made: tuple[int, Tensor] | None = getattr(mask, "packed", None)
    if made is None or made[0] != held:
        seen = mask[..., :held]
        added = seen.new_zeros(seen.shape, dtype=key.dtype).masked_fill_(~seen, -inf) if seen.dtype == bool_ else seen
        made = held, added.repeat(1, 1, group, 1)
        mask.packed = made  # type: ignore[attr-defined]
    return made[1]


def pack(model: Any) -> None:
    """Let the model attend by `packed_sdpa`: where it computes by the library's interface and would by sdpa, or where a
    function can be put in the place of its own code."""
    # these modules take two seconds to import, and a list of techniques needs none of them
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if own_attention.fits(model):
        own_attention.attend_by(model, marked(packed_sdpa))
        return
    AttentionInterface.register(NAME, marked(packed_sdpa))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model._can_set_attn_implementation() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
