"""What few bits cost before any training: the error of the weights and the likelihood of held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import text
from bench.errors import Unsupported
from bench.families.training import TrainedPrepared
from bench.models import Source
from bench.registry import register
from bench.technique import Prepared, Technique
from bench.workload import Built, Quality, Work
from benchmarks.finetuning.embedded_text import EmbeddedText

ROWS = 1024
"""Unit vectors that a layer is given at once."""
PREFIXES = ("", "base_model.", "base_model.model.")
"""What peft puts before the names of a model's layers: nothing around them, prompts, or adapters."""


@register
class Quantisation(EmbeddedText):
    """Score a model as its technique holds it, in 4, 8 or 16 bits, with adapters that add nothing yet.

    A layer's weights are read off what it makes of unit vectors, so that any way to hold them can be asked. Timed
    bursts are training steps, as in every workload of the family.
    """

    source: ClassVar[str] = text.SOURCE
    trains: ClassVar[bool] = False

    steps: int = Field(default=0, ge=0, le=0)
    """Nothing is trained."""
    other_items: int = Field(default=0, ge=0)
    """Nothing is forgotten; sequences of another domain would be scored as they are."""

    def work(self) -> tuple[Work, Work, Work]:
        build, burst, scored = super().work()
        # a layer is given as many unit vectors as its input is wide: about as many tokens
        return build, burst, scored + Work(prefill=ROWS)

    def quality(
        self,
        technique: Technique,
        prepared: Prepared,
        built: Built,
        seed: int,
        source: Source,
        reference: Quality | None,
    ) -> Quality:
        """Held-out likelihood, and the relative error of every linear layer's weights.

        Raises:
            Unsupported: a layer of the source's is not in the prepared model.
        """
        assert isinstance(prepared, TrainedPrepared)
        quality = super().quality(technique, prepared, built, seed, source, reference)
        errors = dict(weight_errors(prepared, source))
        quality.metrics["weight_error"] = list(errors.values())
        if source.on_4_bit_grid:
            quality.notes[
                f"NOT TESTABLE HERE: the weights of {source.name} lie on a 4-bit grid already, so that what another "
                f"4-bit type costs says little of weights that do not"
            ] = "give a model that was stored in 16 bits, as --model stdlib-4m"
        return quality


@torch.no_grad()
def weight_errors(prepared: TrainedPrepared, source: Source) -> Iterator[tuple[str, float]]:
    """Name and relative root mean square error of every linear layer but the output head, layer by layer."""
    prepared.model.eval()
    skeleton: Any = source.empty()
    ends = {id(skeleton.get_input_embeddings()), id(skeleton.get_output_embeddings())}
    for prefix, tensors in source.layers():
        for key, exact in tensors.items():
            name, _, part = f"{prefix}.{key}".rpartition(".")
            layer = skeleton.get_submodule(name)
            if part != "weight" or exact.dim() != 2 or isinstance(layer, nn.Embedding) or id(layer) in ends:
                continue
            exact = (exact if isinstance(layer, nn.Linear) else exact.T).to(source.device).float()
            with prepared.precision():
                held = weight_of(_layer(prepared.model, name), exact.shape[1], source)
            norm = exact.square().mean().sqrt()
            yield name, float((held - exact).square().mean().sqrt() / norm) if norm else 0.0


def weight_of(layer: nn.Module, width: int, source: Source) -> Tensor:
    """The weight `(out, in)` that a linear layer of any kind computes with, float32.

    Args:
        width: of its input.
    """
    options = {"dtype": source.torch_dtype, "device": source.device}
    bias = layer(torch.zeros(1, width, **options)).float()
    units = torch.eye(width, **options)
    return torch.cat([layer(some).float() - bias for some in units.split(ROWS)]).T


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of that name, whether or not peft stands around the model."""
    modules = dict(model.named_modules())
    for prefix in PREFIXES:
        if prefix + name in modules:
            return modules[prefix + name]
    raise Unsupported(f"layer {name} of the source is not in the prepared model, so its weights cannot be compared")
