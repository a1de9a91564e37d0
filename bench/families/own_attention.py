"""Models that attend in their own code, outside the library's interface: a function of its form is put in their place.

No file of a model is changed. GPT-J and CodeGen attend in a method, which a module can have replaced; Falcon calls
torch's kernel, and a mode sees the call. A model whose attention is written out among other operations, as Bloom's and
MPT's with their biases by distance, has no such place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Attend = Callable[..., tuple[Tensor, Any]]
BY_METHOD = ("gptj", "codegen")
BY_KERNEL = ("falcon",)
_ATTEND = "attends_by"


def fits(model: Any) -> bool:
    """Whether another function can be put in the place of the model's own attention."""
    config = model.config
    by_kernel = config.model_type in BY_KERNEL and not config.alibi and config._attn_implementation == "sdpa"
    return by_kernel or config.model_type in BY_METHOD


def attends_by(model: Any) -> Attend | None:
    """What was put there last."""
    return getattr(model, _ATTEND, None)


def attend_by(model: Any, attend: Attend) -> None:
    """Put a function in the place of a model's attention, called as `transformers` calls those of its interface."""
    setattr(model, _ATTEND, attend)
    for module in _modules(model):
        if model.config.model_type in BY_METHOD:
            module._attn = functools.partial(_method, module, attend)
        else:
            module.forward = functools.partial(_forward, module, attend)


def _modules(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if type(module).__name__.endswith("Attention"))


def _method(
    module: Any, attend: Attend, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Any]:
    # tables of rotations in float32 make such queries of 16-bit states
    out, weights = attend(module, query.to(value.dtype), key.to(value.dtype), value, attention_mask)
    return out.transpose(1, 2), weights


def _forward(module: Any, attend: Attend, *args: Any, **kwargs: Any) -> Any:
    with _Kernel(module, attend):
        return type(module).forward(module, *args, **kwargs)


class _Kernel(TorchFunctionMode):
    """While one module runs, what it asks torch's kernel for is asked of the function."""

    def __init__(self, module: Any, attend: Attend) -> None:
        super().__init__()
        self.module = module
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        query, key, value = args
        out, _ = self.attend(self.module, query, key, value, given.get("attn_mask"))
        return out.transpose(1, 2)
