"""A source that has a model's shapes and no weights: nothing is read but its configuration and its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

from bench.errors import ModelError, Unsupported
from bench.model_names import kind_of
from bench.models import Source, Sources
from bench.probes.tensors import StorageWatch

LARGEST_REAL = 2**30
"""A workload that has the model write its data is given a real network of random weights, no larger than this [B]."""


@dataclass(frozen=True)
class Weightless(Source):
    """Every tensor of the model has its shape and dtype, on the source's device; what is in it is undefined."""

    @property
    def kind(self) -> str:
        """As of any source; a folder needs nothing but its config.json."""
        return kind_of(self.name, weights=False)

    def model(self, dtype: torch.dtype | None = None, attention: str = "sdpa", **options: Any) -> nn.Module:
        """The whole network, as `Source.model` builds it.

        Raises:
            Unsupported: a library is to quantise while it reads the weights, or a workload asks a large network.
        """
        from torch._guards import detect_fake_mode
        from transformers import AutoModelForCausalLM

        from bench import networks

        if options:
            raise Unsupported(f"cannot be foreseen: the library reads the weights itself ({', '.join(options)})")
        dtype = dtype or self.torch_dtype
        if detect_fake_mode() is None and self.parameters * dtype.itemsize > LARGEST_REAL:
            raise Unsupported(
                "cannot be foreseen: this workload has the model write or score its data; name a small one"
            )
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(self.config, attn_implementation=attention, dtype=dtype)
        return networks.still(model)

    def empty(self, attention: str = "sdpa") -> nn.Module:
        """As of any source. Its weights are made one by one on the CPU and dropped at once, which no device sees."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unwatched(), unset_fake_temporarily():
            return super().empty(attention)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own; where none is at hand, one of bytes: a text then has more tokens, none of another size."""
        try:
            return super().tokenizer
        except ModelError:
            from bench.byte_tokenizer import byte_tokenizer

            return byte_tokenizer()

    def _tensor(self, name: str) -> Tensor:
        return torch.empty(self._skeleton[name].shape, dtype=self.torch_dtype, device=self.device)


def sources(model: str, others: dict[str, str], dtype: str, seed: int = 0) -> Sources:
    """The models of a run without their weights, on the CPU: a device that is not there cannot be pretended.

    Args:
        others: role -> name, as `draft`.
    """
    helpers = {role: Weightless(name, role, dtype=dtype) for role, name in others.items()}
    return Sources(Weightless(model, dtype=dtype), helpers, seed)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What is made here counts only once a component names it."""
    watched = isinstance(_get_current_dispatch_mode(), StorageWatch)
    with _pop_mode_temporarily() if watched else contextlib.nullcontext():
        yield
