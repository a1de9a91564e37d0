"""QLoRA is LoRA on a base of 4 bits: the same training, with every byte of it accounted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetuned import IDS, JOB, MODELS, losses, prepared
from pydantic import ValidationError

from bench import experiment, plan, suites
from bench.errors import Unsupported
from bench.families.training import frozen
from bench.models import Source, Sources
from bench.probes.memory import bytes_held
from techniques.finetuning.core.blockwise import Format, quantise
from techniques.finetuning.core.lora import LoraLinear, adapters_off, linear_layers
from techniques.finetuning.core.quantised_linear import Linear4bit
from techniques.finetuning.lora import Lora
from techniques.finetuning.qlora import Qlora


@pytest.mark.parametrize("name", MODELS)
def test_starts_at_its_own_quantised_base_and_not_at_the_16_bit_model(name: str):
    technique = Qlora()
    arm = prepared(technique, name)
    with adapters_off(arm.model):
        base = technique.logprobs(arm, IDS)
    assert torch.equal(technique.logprobs(arm, IDS), base)
    plain = Lora()
    full = plain.logprobs(prepared(plain, name), IDS)
    assert 1e-3 < float((base - full).abs().max()) < 0.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"quant_type": "fp4", "block_size": 32, "double_quantisation": False}])
def test_backends_train_alike_bit_for_bit(name: str, options: dict[str, Any]):
    curves = []
    for backend in ("reference", "bitsandbytes"):
        technique = Qlora(backend=backend, learning_rate=5e-3, warmup_steps=0, **options)
        curves.append(losses(technique, prepared(technique, name)))
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] - 0.1


@pytest.mark.parametrize("name", MODELS)
def test_only_adapters_move(name: str):
    technique = Qlora(learning_rate=5e-3)
    arm = prepared(technique, name)
    before = frozen(arm)
    assert sum(key.endswith("codes") for key in before) == (12 if "gpt2" in name else 21)
    trained = [p.detach().clone() for p in arm.trainable]
    losses(technique, arm)
    assert frozen(arm) == before
    assert all(not torch.equal(old, new) for old, new in zip(trained, arm.trainable, strict=True))
    adapters = [m for m in arm.model.modules() if isinstance(m, LoraLinear)]
    sizes = [16 * (m.base.in_features + m.base.out_features) for m in adapters]  # type: ignore[union-attr, operator]
    assert sum(p.numel() for p in arm.trainable) == sum(sizes)


def test_every_byte_has_a_name():
    technique = Qlora()
    arm = prepared(technique)
    steps = technique.steps(arm, JOB)
    next(steps)
    held = bytes_held(arm.holdings())
    steps.close()
    layers = [m for m in arm.model.modules() if isinstance(m, Linear4bit)]
    quantised = [m.in_features * m.out_features for m in layers]
    others = sum(p.nbytes for n, p in arm.model.named_parameters() if not n.endswith((".A", ".B")))
    rotary = sum(b.nbytes for n, b in arm.model.named_buffers() if "inv_freq" in n)
    # one byte a block, one float32 a 256 blocks and one a matrix
    constants = sum(n // 64 + 4 * -(-n // (64 * 256)) + 4 for n in quantised)
    adapters = 4 * sum(16 * (m.in_features + m.out_features) for m in layers)
    assert held["weights"] == sum(quantised) // 2 + others + rotary
    assert held["quantisation_constants"] == constants
    assert held["adapters"] == adapters
    assert 2 * adapters <= held["optimizer"] < 2 * adapters + 10_000
    assert arm.facts["bits_per_parameter"] == pytest.approx(4 + 8 * constants / sum(quantised))
    arm.close()


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, Format("nf4", 64, True)),
        ({"quant_type": "fp4"}, Format("fp4", 64, True)),
        ({"quant_type": "int4", "backend": "reference"}, Format("int4", 64, True)),
        ({"block_size": 128, "double_quantisation": False}, Format("nf4", 128, False)),
    ],
)
def test_parameters_reach_the_weights(options: dict[str, Any], form: Format):
    arm = prepared(Qlora(**options))
    name = "model.layers.1.mlp.up_proj"
    weight = linear_layers(Source("tiny:llama").model())[name].get_parameter("weight")
    layer = arm.model.get_submodule(f"{name}.base")
    assert torch.equal(layer.codes, quantise(weight, form).codes)
    assert len(layer.constants()) == (3 if form.double else 1)


def test_computes_in_bfloat16_where_told():
    low, plain = Qlora(compute="bfloat16"), Qlora()
    rounded, exact = low.logprobs(prepared(low), IDS), plain.logprobs(prepared(plain), IDS)
    assert rounded.dtype == torch.float32
    assert 1e-5 < float((rounded - exact).abs().max()) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_changes_no_number_and_saves_activations(name: str):
    curves, saved = [], []
    for checkpointing in (False, True):
        technique = Qlora(learning_rate=5e-3, gradient_checkpointing=checkpointing)
        arm = prepared(technique, name)
        arm.model.train()
        kept = []

        def pack(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            technique.batch_loss(arm, JOB.batches[0])
        saved.append(sum(kept))
        curves.append(losses(technique, arm))
    assert curves[0] == curves[1]
    assert saved[1] < 0.4 * saved[0]


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_optimizers(optimizer: Any):
    technique = Qlora(optimizer=optimizer, learning_rate=5e-3, warmup_steps=0)
    plain = Qlora(learning_rate=5e-3, warmup_steps=0)
    arm, other = prepared(technique, "tiny:gpt2"), prepared(plain, "tiny:gpt2")
    curve, expected = losses(technique, arm), losses(plain, other)
    assert curve == pytest.approx(expected, abs=0.02 if "8bit" in optimizer else 2e-5)
    held = bytes_held(arm.holdings())["optimizer"] / bytes_held(other.holdings())["optimizer"]
    # adapters below 4096 weights keep moments of 32 bits
    assert held < 0.8 if "8bit" in optimizer else held == pytest.approx(1, abs=0.01)


def test_bad_input_is_one_line():
    with pytest.raises(ValidationError, match="int4 has no kernel in bitsandbytes; set backend=reference"):
        Qlora(quant_type="int4")
    with pytest.raises(ValidationError):
        Qlora(block_size=48)
    with pytest.raises(Unsupported, match=r"rank=64 .*k_proj.* rank <= 32"):
        prepared(Qlora(rank=64))


@pytest.mark.parametrize("size", ["7b", "13b", "33b", "65b"])
def test_what_a_gpu_is_to_run_runs_at_the_size_that_fits(size: str):
    raw, origin = suites.find([f"gpu/qlora_{size}"])
    checked = experiment.check(raw, origin)
    assert checked.settings.model == f"synthetic:llama-{size}"
    assert plan.total(checked, "cuda", "bfloat16") < 480
    (comparison,) = checked.comparisons
    asked = next(arm.technique for arm in comparison.arms if arm.label == "qlora")
    assert isinstance(asked, Qlora)
    assert asked.rank == 64
    technique = asked.model_copy(update={"rank": 8, "optimizer": "adamw"})
    arm = prepared(technique, dtype="bfloat16")
    # beside peft's, the adapters are as wide as peft's
    alone = len(comparison.arms) == 1
    assert {p.dtype for p in arm.trainable} == {torch.bfloat16 if alone else torch.float32}
    sources = Sources(Source("tiny:llama", dtype="bfloat16"))
    job = comparison.workload.burst(comparison.workload.build(sources, 0), 0, 0, "cpu")
    (step,) = technique.steps(arm, job)
    assert step.tokens == 511
    assert bool(step.outputs[0].isfinite())
    held = bytes_held(arm.holdings())
    assert held["optimizer"] < 2 * held["adapters"] + 1000, "moments as wide as the adapters"
