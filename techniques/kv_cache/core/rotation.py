"""Turning keys that carry their rotary position to another position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bench.errors import Unsupported
from bench.families import cache as kv

FIXED = {"default", "linear", "llama3", "yarn", "proportional"}
"""Kinds of rotary positions whose frequencies do not change with the length of the text."""
IN_PAIRS = ("gptj", "codegen")
"""Models whose code turns neighbouring dimensions, by tables of its own."""
PROBE = 3
"""Distance over which a model's own rotation is compared with ours [tokens]."""


class Rotation:
    """Rotary positions in halves (Su et al. 2021; `rotate_half`): dimension j is paired with j + rotary / 2."""

    def __init__(self, inverse_frequencies: Tensor) -> None:
        """`inverse_frequencies` `(rotary_dim / 2,)`: radians per token."""
        self.inverse_frequencies = inverse_frequencies.float()
        self._distance = 0
        self._cos = self._sin = torch.empty(0)

    def __call__(self, keys: Tensor, distance: int) -> Tensor:
        """Keys `(..., head_dim)`, turned forward by `distance` tokens; computed in float32, in new memory."""
        if distance != self._distance:
            # all layers of a step ask for the same distance
            angle = self.inverse_frequencies * distance
            self._cos, self._sin, self._distance = angle.cos(), angle.sin(), distance
        return self._turned(keys, self._cos, self._sin)

    def each(self, states: Tensor, distances: Tensor) -> Tensor:
        """States `(..., tokens, head_dim)`, each turned forward by its own distance `(tokens,)` [tokens]."""
        angle = distances[:, None] * self.inverse_frequencies
        return self._turned(states, angle.cos(), angle.sin())

    def matrix(self, distances: Tensor, width: int) -> Tensor:
        """The mean rotation by several distances, `(width, width)`: it turns columns of that many dimensions."""
        basis = torch.eye(width, device=self.inverse_frequencies.device)
        angle = distances[:, None] * self.inverse_frequencies
        return self._turned(basis, angle.cos().mean(0), angle.sin().mean(0)).T

    def _turned(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = len(self.inverse_frequencies)
        first, second = states[..., :half].float(), states[..., half : 2 * half].float()
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat([*(part.to(states.dtype) for part in turned), states[..., 2 * half :]], dim=-1)


def rotation_if_any(model: Any) -> Rotation | None:
    """The rotation that a model's keys carry; none where it has no rotary positions.

    Raises:
        Unsupported: it has others than those in halves.
    """
    turns = any(name.rpartition(".")[2] == "inv_freq" for name, _ in model.named_buffers())
    return rotation_of(model) if turns or model.config.model_type in IN_PAIRS else None


def rotation_of(model: Any) -> Rotation:
    """The rotation that a model's keys carry.

    It is checked on the model itself: a text of one token attends to nothing but itself, so in every layer its key
    at position 3 is its key at position 0, turned. Learned positions, other pairings of dimensions and layers
    without positions do not pass.

    Raises:
        Unsupported: the keys cannot be turned.
    """
    if model.config.model_type in IN_PAIRS:
        raise Unsupported(f"the keys of {model.config.model_type} are turned in pairs of neighbours, not in halves")
    found = [b for name, b in model.named_buffers() if name.rpartition(".")[2] == "inv_freq"]
    if not found:
        raise Unsupported(
            "positions cannot be re-indexed: this model has no rotary positions, its cached keys are bound to "
            "theirs (positions='absolute' works)"
        )
    parameters = model.config.get_text_config(decoder=True).rope_parameters or {}
    kind = parameters.get("rope_type", "default")
    if kind not in FIXED or len(found) > 1:
        raise Unsupported(f"positions cannot be re-indexed: rotary positions of type {kind!r} vary")
    rotation = Rotation(found[0])
    here, there = _keys(model, 0), _keys(model, PROBE)
    for layer, (key, turned) in enumerate(zip(here, there, strict=True)):
        error = (rotation(key, PROBE).float() - turned.float()).abs().max()
        if not error < 0.05 * turned.float().abs().max():
            raise Unsupported(
                f"positions cannot be re-indexed: the keys of layer {layer} are not rotated in halves by position"
            )
    return rotation


@torch.inference_mode()
def _keys(model: Any, position: int) -> list[Tensor]:
    """Per layer, the keys `(texts, kv_heads, 1, head_dim)` of some lone tokens, each at this position."""
    cache = DynamicCache()
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[:, None]  # several: the embedding of padding is zero
    model(input_ids=ids, position_ids=torch.full_like(ids, position), past_key_values=cache, use_cache=True)
    return kv.tensors(cache)[::2]
