"""A model is built in few bits layer by layer: its weights never exist in 16 bits together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bench.errors import ModelError
from bench.models import Source
from techniques.finetuning.core.lora import linear_layers, put
from techniques.finetuning.core.quantised_linear import QuantisedLinear

Quantiser = Callable[[Tensor, Tensor | None], QuantisedLinear]
"""Weight `(out, in)` and bias -> the layer that takes the place of both."""


def quantised_model(source: Source, quantiser: Quantiser) -> nn.Module:
    """The source's network with every linear layer but the output head quantised (Dettmers et al. 2023, section 3).

    Embeddings, norms and the output head stay in the run's dtype. All weights are frozen. A layer's 16-bit tensors
    are let go of before the next layer's are read.

    Raises:
        ModelError: a weight is inf or nan; the layer is named.
    """
    model: Any = source.empty()
    head = model.get_output_embeddings()
    linear = {name: layer for name, layer in linear_layers(model).items() if layer is not head}
    for prefix, tensors in source.layers():
        for name in dict.fromkeys(_module(prefix, key) for key in tensors):
            keys = [key for key in tensors if _module(prefix, key) == name]
            parts = {key.rpartition(".")[2]: tensors.pop(key) for key in keys}
            # a copy, so that nothing of the file's memory map is held
            moved = {part: parts.pop(part).to(source.device, copy=True) for part in list(parts)}
            if name in linear:
                try:
                    put(model, name, quantiser(upright(linear[name], moved["weight"]), moved.get("bias")))
                except ModelError as error:
                    raise ModelError(f"model {source.name!r}, layer {name}: {error}") from None
            else:
                for part, tensor in moved.items():
                    setattr(model.get_submodule(name), part, nn.Parameter(tensor, requires_grad=False))
            del moved
    model.tie_weights()
    for module in model.modules():  # all weights are there already
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(source.device))
    return model


def upright(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a linear layer as `(out, in)`: `Conv1D` stores `(in, out)`."""
    return weight if isinstance(layer, nn.Linear) else weight.T


def _module(prefix: str, key: str) -> str:
    return f"{prefix}.{key}".rpartition(".")[0]


def constants(model: nn.Module) -> list[Tensor]:
    """The quantisation constants that the model's layers hold."""
    return [t for module in model.modules() if isinstance(module, QuantisedLinear) for t in module.constants()]


def bits_per_parameter(model: nn.Module) -> float:
    """Bits of storage per weight over all quantised layers, constants counted."""
    layers = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    weights = [layer.in_features * layer.out_features for layer in layers]
    bits = sum(layer.bits_per_parameter() * count for layer, count in zip(layers, weights, strict=True))
    return bits / sum(weights)
