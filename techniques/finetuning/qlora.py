"""QLoRA: low-rank adapters are trained beside a frozen model of 4 bits a weight."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from bench.claim import Claim, about, at_most, below
from bench.families.training import TrainedPrepared
from bench.models import Sources
from bench.registry import register
from techniques.finetuning.core.blockwise import Format
from techniques.finetuning.core.building import Quantiser, bits_per_parameter, constants, quantised_model
from techniques.finetuning.core.code_books import QuantType
from techniques.finetuning.core.quantised_linear import Backend, Linear4bit
from techniques.finetuning.lora import Lora

LLAMAS = "*llama-7b*|*llama-13b*|*llama-30b*|*llama-65b*"
"""Of the paper."""


@register
class Qlora(Lora):
    """Y = X doubleDequant(c1, c2, W) + s X L1 L2: LoRA whose frozen weights are held in NF4 (eq. 5 and 6).

    A weight is made in the compute dtype when its layer is reached, forward and backward, and let go of at once. The
    model is built from its source layer by layer and never exists in 16 bits.

    Differs from the paper: constants are held in the 8-bit dynamic type, as in its code, not in FP8; rank, alpha,
    dropout and optimizer start as those of `lora`, so that the two differ in the base alone, where the paper trains
    with rank 64, alpha 16, dropout .1 (.05 from 33B on) and the paged optimizer.
    """

    source: ClassVar[str] = "Dettmers et al. 2023, QLoRA, section 3, eq. 1 to 6"
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            name="bits",
            headline="QLoRA stores a weight in 4.127 bits.",
            statement="Double quantisation brings a weight to 4.127 bits: .127 for constants instead of .5.",
            source="Dettmers et al. 2023, QLoRA, section 3",
            expression="counts.bits_per_parameter(qlora[quant_type=nf4,block_size=64,double_quantisation=true])",
            expected=about(4.127, 0.005),
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="nf4_over_fp4",
            statement="NF4 with double quantisation loses less than FP4: MMLU 53.1 against 52.2 behind finetuning.",
            source="Dettmers et al. 2023, QLoRA, table 4",
            expression="nll(qlora[quant_type=nf4]) - nll(qlora[quant_type=fp4])",
            expected=below(0.0),
            conditions={"model": LLAMAS, "device": "cuda", "workload": "mmlu*"},
            out_of_reach="MMLU is no workload of this program",
            needs={"weights": "trained"},
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="fp4_over_int4",
            statement="FP4 loses less than Int4: perplexity 31.07 against 34.34; here behind the same finetuning.",
            source="Dettmers et al. 2023, QLoRA, table 2",
            expression="nll(qlora[quant_type=fp4]) - nll(qlora[quant_type=int4,backend=reference])",
            expected=below(0.0),
            conditions={"model": "*opt-*|*bloom-*|*llama-*|*pythia-*", "workload": "pile_cc*"},
            out_of_reach="Pile-CC is no workload of this program",
            needs={"weights": "trained"},
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="double_quantisation_is_free",
            statement="Double quantisation saves memory without sacrificing performance.",
            source="Dettmers et al. 2023, QLoRA, abstract",
            expression=(
                "nll(qlora[quant_type=nf4,double_quantisation=true]) - "
                "nll(qlora[quant_type=nf4,double_quantisation=false])"
            ),
            expected=at_most(0.01),
            conditions={"model": "*llama-*|*t5-*", "device": "cuda", "workload": "mmlu*|glue*"},
            out_of_reach="MMLU and GLUE are no workloads of this program",
            needs={"weights": "trained"},
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="equals_16_bits",
            headline="QLoRA in 4 bits finetunes as well as LoRA in 16.",
            statement="NF4 with double quantisation reaches 16-bit LoRA: MMLU 53.1 against 53.0.",
            source="Dettmers et al. 2023, QLoRA, table 4",
            expression=(
                "next_token_accuracy(qlora[quant_type=nf4,double_quantisation=true]) - next_token_accuracy(lora)"
            ),
            expected=about(0.0, 0.01),
            conditions={"model": LLAMAS, "device": "cuda", "workload": "mmlu*"},
            out_of_reach="MMLU is no workload of this program",
            needs={"weights": "trained"},
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
        Claim(
            name="65b_in_48_gb",
            statement="A model of 65B parameters is finetuned on a single GPU of 48 GB.",
            source="Dettmers et al. 2023, QLoRA, abstract",
            expression="reserved_memory(qlora[gradient_checkpointing=true,rank=64])",
            expected=at_most(48 * 2**30),
            conditions={"device": "cuda", "workload.sequence": "512", "workload.batch_size": "1"},
            needs={"model": "*llama-65b*"},
            workload={"name": "embedded_text", "sequence": 512, "batch_size": 1, "steps": 2, "items": 2},
        ),
        Claim(
            name="rank_without_effect",
            statement="With adapters on all linear layers the rank does not affect performance.",
            source="Dettmers et al. 2023, QLoRA, section 4",
            expression="nll(qlora[rank=64,targets=all-linear]) - nll(qlora[rank=8,targets=all-linear])",
            expected=about(0.0, 0.01),
            conditions={"model": "*llama-7b*", "device": "cuda", "workload": "alpaca*"},
            out_of_reach="Alpaca with MMLU is no workload of this program",
            needs={"weights": "trained"},
            workload={"name": "embedded_text", "sequence": 128, "steps": 30, "items": 16},
        ),
    )

    quant_type: QuantType = "nf4"
    """`nf4`: quantiles of normal weights; `fp4`: E2M1 floats; `int4`: even steps (section 4, table 2)."""
    block_size: Literal[32, 64, 128, 256, 512, 1024] = 64
    """Weights that share a quantisation constant; 64 in the paper."""
    double_quantisation: bool = True
    """Whether the constants are held in 8 bits: 4.127 bits a weight instead of 4.5."""
    backend: Backend = "bitsandbytes"
    """Who makes the weights: `bitsandbytes` by its kernels, `reference` by readable code. The numbers are the same."""
    compute: Literal["model", "bfloat16", "float32"] = "model"
    """Dtype of the products with frozen weights: the run's, or the one named; bfloat16 in the paper."""

    @model_validator(mode="after")
    def _kernel_knows_it(self) -> Self:
        if self.quant_type == "int4" and self.backend == "bitsandbytes":
            raise ValueError("quant_type=int4 has no kernel in bitsandbytes; set backend=reference")
        return self

    def prepare(self, sources: Sources) -> TrainedPrepared:
        return self.built(sources, self.quantised)

    def quantised(self, weight: Tensor, bias: Tensor | None) -> Linear4bit:
        """The layer that takes the place of a linear one."""
        form = Format(self.quant_type, self.block_size, self.double_quantisation)
        compute = None if self.compute == "model" else getattr(torch, self.compute)
        return Linear4bit(weight, bias, compute, form, self.backend)

    def built(self, sources: Sources, quantiser: Quantiser) -> TrainedPrepared:
        """The model of quantised layers with its adapters, ready for the loop."""
        prepared = self.adapted(quantised_model(sources.target, quantiser), sources.seed)
        model = prepared.model
        prepared.components["quantisation_constants"] = lambda: constants(model)
        prepared.facts["bits_per_parameter"] = bits_per_parameter(model)
        return prepared
