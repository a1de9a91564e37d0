"""Networks as a source builds them: with random weights, with weights of their own memory, with none at all."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

RANDOM_SEED = 20231210


def random_tensor(name: str, shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    """Seeded random weights of name, shape and kind of device alone: N(0, .02), norms 1, biases 0."""
    if name.endswith("bias"):
        return torch.zeros(shape, device=device)
    if len(shape) == 1:
        return torch.ones(shape, device=device)
    key = hashlib.sha256(f"{RANDOM_SEED} {name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(key[:7], "little"))
    return torch.empty(shape, device=device).normal_(0.0, 0.02, generator=generator)


def random(config: Any, attention: str, dtype: torch.dtype, device: str) -> nn.Module:
    """The network of a configuration, with random weights."""
    # dtype given here, not by `.to`: position frequencies stay in float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_tensor(name, tuple(parameter.shape), parameter.device.type))
    return model


def empty(config: Any, attention: str, dtype: torch.dtype) -> nn.Module:
    """The network of a configuration without its weights, which are on the meta device; its buffers are there."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    return model


def backend(config: Any, attention: str) -> str:
    """The attention backend, or `eager` where that is sdpa and the library's network does not compute by it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    capable = known and MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    return "eager" if attention == "sdpa" and known and not capable else attention


def own(model: nn.Module) -> nn.Module:
    """Copy weights out of the file's memory map: every arm then holds anonymous memory, read or written."""
    with torch.no_grad():
        copies: dict[int, Tensor] = {}
        for parameter in model.parameters():
            if parameter.device.type == "cpu":
                parameter.data = copies.setdefault(parameter.data_ptr(), parameter.data.clone())
    return model


def still(model: nn.Module) -> nn.Module:
    """Take away all dropout, in place; in eval mode."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), int | float):  # read by the attention function
            module.attention_dropout = 0.0
    return model.eval()
