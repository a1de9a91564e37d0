"""The mask oracle: an evicting cache must compute what a model that never forgets computes behind a mask.

What a cache keeps is its own affair; that it keeps what it says, where it says, is checked here, twice:

* *logits*: the reference reads the whole text in one pass without any cache, by plain softmax attention in float32,
  hiding per layer and head the keys that the cache no longer holds and turning the others to the positions at which
  they are seen. This sees wrong positions of new tokens too, but in bfloat16 the rounding of all layers adds up.
* *heads*: while the cache is at work, each head's output is held against plain attention over all keys that ever
  went into the cache. No rounding adds up here: one token missing in one head shows in bfloat16 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from bench.families import cache as kv
from bench.families import own_attention
from bench.workload import Gate

NAME = "mask_oracle"
BLOCK = 128
"""Rows of the context that attend at once: bounds the scores held [tokens]."""
LOGITS_FLOAT32 = 1e-4
"""Largest error of a logit, in standard deviations of the logits."""
HEADS_FLOAT32 = 1e-4
"""Largest error of a head's output, over the output it would have if all values had one sign."""
ROUNDING = 3.0
"""In coarser types: largest errors in multiples of the plain cache's own errors against the same reference.

A head that attends to few tokens may be off by what rounding its weights alone makes, half a step of the type.
"""

Attention = Callable[..., tuple[Tensor, Any]]


@dataclass
class Visible:
    """What one token attends to in one layer, each `(batch, kv_heads, most)`, -1 for nothing."""

    held: Tensor
    seen_at: Tensor

    def over(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Which of all tokens are held, and how far each is seen from its place: `(batch, kv_heads, tokens)`."""
        there = self.held >= 0
        index = self.held.clamp(min=0)
        nothing = torch.zeros(*index.shape[:2], tokens, dtype=torch.int64, device=index.device)
        shift = nothing.scatter_add(-1, index, (self.seen_at - self.held) * there)
        return nothing.scatter_add(-1, index, there.long()) > 0, shift


class Observed(Cache):
    """A cache at work, with a record of what went in and what every token behind the context could see."""

    def __init__(self, inner: Cache) -> None:
        super().__init__(layers=inner.layers)
        self.inner = inner
        self.visible: dict[int, list[Visible]] = {}
        self.keys: dict[int, list[Tensor]] = {}
        self.values: dict[int, list[Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        first = layer_idx not in self.keys
        self.keys.setdefault(layer_idx, []).append(key_states.clone())
        self.values.setdefault(layer_idx, []).append(value_states.clone())
        attended = self.inner.update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        if isinstance(layer, kv.EvictingLayer) and not first:
            seen = Visible(layer.positions().clone(), layer.seen_at().clone())
            self.visible.setdefault(layer_idx, []).append(seen)
        return attended

    def attended(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, `(batch, kv_heads, tokens, head_dim)`: those hidden are masked later."""
        return torch.cat(self.keys[layer], -2), torch.cat(self.values[layer], -2)

    @property
    def hidden(self) -> int:
        """Most tokens that one head could not see [tokens]."""
        return max(
            (
                sum(keys.shape[-2] for keys in self.keys[layer]) - int((steps[-1].held >= 0).sum(-1).min())
                for layer, steps in self.visible.items()
            ),
            default=0,
        )


@dataclass
class Reference:
    """Plain attention over all keys of a text; rows from `context` on see what the record says."""

    context: int
    visible: dict[int, list[Visible]] = field(default_factory=dict)
    """Per layer, one entry per row behind the context; a layer without entries sees everything."""
    inverse_frequencies: Tensor | None = None

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Query `(batch, heads, tokens, head_dim)` -> `(batch, tokens, heads, head_dim)`."""
        tokens = query.shape[2]
        parts = []
        start = 0
        while start < tokens:
            if start < self.context:  # none of these sees what comes behind the block
                stop = min(start + BLOCK, self.context)
                own, given = key[:, :, :stop], value[:, :, :stop]
            else:
                stop, own, given = start + 1, key, value
            parts.append(
                self.rows(query[:, :, start:stop], own, given, start, module.layer_idx, scaling, sliding_window)[0]
            )
            start = stop
        return torch.cat(parts, 2).transpose(1, 2).to(query.dtype).contiguous(), None

    def rows(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        layer: int,
        scaling: float | None,
        sliding_window: int | None,
    ) -> tuple[Tensor, Tensor]:
        """The output of rows `(batch, heads, rows, head_dim)` that begin at token `start`, and its scale.

        Returns:
            Both in float32: the output, and what it would be if all values were positive.
        """
        batch, heads, count, width = query.shape
        kv_heads, tokens = key.shape[1:3]
        places = torch.arange(tokens, device=key.device)
        at = places[start : start + count, None]
        visible = places <= at  # (rows, tokens)
        if sliding_window is not None:
            visible = visible & (places > at - sliding_window)
        keys, values = key.float(), value.float()[:, :, None]
        step, steps = start - self.context, self.visible.get(layer, [])
        if 0 <= step < len(steps):
            held, shift = steps[step].over(tokens)
            # a cache that turns a key holds it in the model's type
            keys, visible = self._turn(keys, shift).to(key.dtype).float(), visible & held[:, :, None, None]
        grouped = query.float().reshape(batch, kv_heads, heads // kv_heads, count, width)
        scores = grouped @ keys[:, :, None].transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)  # (batch, kv_heads, group, rows, tokens)
        shape = (batch, heads, count, -1)
        return (weights @ values).reshape(shape), (weights @ values.abs()).reshape(shape)

    def _turn(self, keys: Tensor, shift: Tensor) -> Tensor:
        """Each key `(batch, kv_heads, tokens, head_dim)` turned by its own distance, as complex numbers."""
        if not shift.any():
            return keys
        assert self.inverse_frequencies is not None, "a cache moves keys of a model without rotary positions"
        half = len(self.inverse_frequencies)
        angle = shift[..., None] * self.inverse_frequencies.double()
        number = torch.complex(keys[..., :half].double(), keys[..., half : 2 * half].double())
        number = number * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([number.real.float(), number.imag.float(), keys[..., 2 * half :]], -1)


@dataclass
class Witness:
    """The attention that a cache is used with, held against the reference head by head."""

    inner: Attention
    observed: Observed
    reference: Reference
    worst: float = 0.0

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        out, weights = self.inner(module, query, key, value, attention_mask, **kwargs)
        if query.shape[2] == 1:
            layer = module.layer_idx
            keys, values = self.observed.attended(layer)
            expected, scale = self.reference.rows(
                query,
                keys,
                values,
                keys.shape[-2] - 1,
                layer,
                kwargs.get("scaling"),
                kwargs.get("sliding_window"),
            )
            # that the output itself is rounded is no error: it would be the larger share the fewer tokens are held
            rounding = expected.abs() * (torch.finfo(out.dtype).eps / 2)
            error = ((out.transpose(1, 2).float() - expected).abs() - rounding).clamp(min=0)
            self.worst = max(self.worst, float((error.amax(-1) / scale.amax(-1)).max()))
        return out, weights


_active: list[tuple[Attention, Callable[..., Any]]] = []


def _attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    return _active[-1][0](*args, **kwargs)


def _mask(*args: Any, **kwargs: Any) -> Any:
    return _active[-1][1](*args, **kwargs)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The reference masks by itself."""


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def attending(model: Any, attention: Attention, mask: Callable[..., Any]) -> Iterator[None]:
    """Let the model attend by something else for a while."""
    own = own_attention.attends_by(model)
    if own is not None:
        own_attention.attend_by(model, attention)
        try:
            yield
        finally:
            own_attention.attend_by(model, own)
        return
    before = model.config._attn_implementation
    _active.append((attention, mask))
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        _active.pop()


def attention_of(model: Any) -> Attention:
    """What the model attends by."""
    return own_attention.attends_by(model) or AttentionInterface()[model.config._attn_implementation]


def mask_of(model: Any) -> Callable[..., Any]:
    """What makes the masks that it hands to its attention; its own code asks nobody."""
    return _no_mask if own_attention.attends_by(model) else AttentionMaskInterface()[model.config._attn_implementation]


def applies(model: Any) -> bool:
    """Whether the model computes by functions of the library's interface, so that others can be put in."""
    if own_attention.attends_by(model) is not None:
        return True
    return bool(model._can_set_attn_implementation()) and (model.config._attn_implementation in AttentionInterface())


@torch.inference_mode()
def read_once(model: Any, ids: Tensor, reference: Reference) -> Tensor:
    """Logits `(batch, tokens - context + 1, vocabulary)` of the reference, from the context's last token on."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    keep = ids.shape[1] - reference.context + 1
    with attending(model, reference, _no_mask):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep).logits
    return logits.float()


@torch.inference_mode()
def read_stepwise(model: Any, ids: Tensor, cache: Cache, context: int) -> Tensor:
    """The same logits by a cache: the context at once, then token by token."""
    parts = [kv.read(model, ids[:, :context], cache)]
    parts += [kv.read(model, ids[:, at : at + 1], cache) for at in range(context, ids.shape[1])]
    return torch.cat(parts, 1).float()


def gate(model: Any, cache: Cache, ids: Tensor, context: int) -> Gate:
    """Read `ids` (batch, tokens) through the empty cache, token by token behind the context, and compare."""
    observed = Observed(cache)
    made, worst = _witnessed(model, ids, observed, context)
    expected = read_once(model, ids, Reference(context, observed.visible, _frequencies(model)))
    whole = read_once(model, ids, Reference(context))
    spread = float(expected.std())

    dtype = model.dtype
    allowed, heads = LOGITS_FLOAT32, HEADS_FLOAT32
    if dtype not in (torch.float32, torch.float64):
        plain, own = _witnessed(model, ids, Observed(kv.preallocated(model.config, ids.shape[1])), context)
        allowed = ROUNDING * _largest(plain - whole, spread)
        heads = max(ROUNDING * own, torch.finfo(dtype).eps / 2)
    error = _largest(made - expected, spread)
    moved = _largest(expected - whole, spread)
    passed = error <= allowed and worst <= heads
    return Gate(
        "mask_oracle",
        passed,
        f"{ids.shape[1] - context} steps behind {context} tokens in {str(dtype).removeprefix('torch.')}: "
        f"logits off by {error:.2g} of their standard deviation (allowed {allowed:.2g}), heads by "
        f"{worst:.2g} (allowed {heads:.2g}); "
        + (
            f"up to {observed.hidden} tokens were hidden, which moved the logits by {moved:.2g}"
            if observed.hidden
            else "nothing was evicted"
        ),
    )


def _witnessed(model: Any, ids: Tensor, observed: Observed, context: int) -> tuple[Tensor, float]:
    """The logits of `read_stepwise`, and the largest error of a head on the way."""
    witness = Witness(attention_of(model), observed, Reference(context, observed.visible, _frequencies(model)))
    with attending(model, witness, mask_of(model)):
        made = read_stepwise(model, ids, observed, context)
    return made, witness.worst


def _frequencies(model: Any) -> Tensor | None:
    """By which a model with rotary positions turns its keys."""
    return next((b for key, b in model.named_buffers() if key.rpartition(".")[2] == "inv_freq"), None)


def _largest(difference: Tensor, spread: float) -> float:
    return float(difference.abs().max()) / spread
