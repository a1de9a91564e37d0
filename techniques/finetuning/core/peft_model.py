"""What the peers that stand on peft share: its model in our loop, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.errors import Unsupported
from bench.families.training import TrainedPrepared
from techniques.finetuning.core.lora import refuse_rank_beyond, targeted


@dataclass
class PeftPrepared(TrainedPrepared):
    """A model of peft's; whatever hooks it set are taken away when it is closed."""

    def close(self) -> None:
        super().close()
        for module in self.model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()


def wrapped(model: nn.Module, config: Any) -> nn.Module:
    """The model with what peft's configuration asks for.

    Raises:
        Unsupported: a rank exceeds a layer's smaller side, or peft does not know how, in its own words.
    """
    from peft import LoraConfig, get_peft_model

    if isinstance(config, LoraConfig):
        for name, layer in targeted(model, "all-linear").items():
            refuse_rank_beyond(name, layer, config.r)
    try:
        network: nn.Module = get_peft_model(model, config)
    except (ValueError, NotImplementedError) as error:
        raise Unsupported(f"peft: {str(error).strip().splitlines()[0]}") from error
    return network.eval()


def constants(model: nn.Module) -> Iterator[Tensor]:
    """What bitsandbytes' layers hold beside their codes: constants, their own constants, tables."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            yield from (state.absmax, state.code)
            if state.nested:
                yield from (state.offset, state.state2.absmax, state.state2.code)


def bits_per_parameter(model: nn.Module) -> float:
    """Bits of storage per weight over all 4-bit layers: codes and constants, not the tables of code books."""
    from bitsandbytes.nn import Linear4bit

    bits = weights = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            held = [module.weight, state.absmax, *((state.offset, state.state2.absmax) if state.nested else ())]
            bits += 8 * sum(tensor.nbytes for tensor in held)
            weights += module.in_features * module.out_features
    return bits / weights
