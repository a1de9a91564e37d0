"""The adapter is the paper's: peft's numbers on the same weights, nothing at the start, gone when merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import Unsupported
from bench.models import Source
from techniques.finetuning.core.lora import LoraLinear, adapters_off, attach, features, linear_layers, merge

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
IDS = torch.randint(256, (2, 11), generator=torch.Generator().manual_seed(3))


def adapted(name: str, model: Any = None, **values: Any) -> Any:
    options = {"rank": 4, "alpha": 12.0, "dropout": 0.0, "targets": "all-linear", **values}
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    return attach(model or Source(name).model(), generator=generator, **options)


def adapters(model: Any) -> dict[str, LoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def disturb(model: Any) -> Any:
    """Adapters as after training: B is no longer zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.B.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_start_is_the_base_bit_for_bit(name: str, dtype: torch.dtype):
    base: Any = Source(name).model(dtype=dtype)
    logits = base(IDS).logits
    assert torch.equal(adapted(name, copy.deepcopy(base))(IDS).logits, logits)


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_layer_but_the_head_is_adapted(name: str):
    base: Any = Source(name).model()
    sizes = {n: features(m) for n, m in linear_layers(base).items() if m is not base.get_output_embeddings()}
    model = adapted(name)
    assert set(adapters(model)) == set(sizes)
    assert len(sizes) == 3 * (4 if "gpt2" in name else 7)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(4 * (inner + outer) for inner, outer in sizes.values())
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_width_of_conv1d_is_not_transposed():
    layers = linear_layers(Source("tiny:gpt2").model())
    assert features(layers["transformer.h.0.attn.c_attn"]) == (64, 192)
    assert features(layers["transformer.h.0.mlp.c_proj"]) == (256, 64)


@pytest.mark.parametrize("name", MODELS)
def test_base_gets_no_gradient_and_every_adapter_does(name: str):
    model = disturb(adapted(name))
    model(IDS, labels=IDS).loss.backward()
    for own, parameter in model.named_parameters():
        is_adapter = own.endswith((".A", ".B"))
        assert parameter.requires_grad == is_adapter
        assert (parameter.grad is not None) == is_adapter
        assert not is_adapter or float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_logits_and_gradients_are_pefts(name: str):
    from peft import LoraConfig, get_peft_model

    ours = disturb(adapted(name))
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs: Any = get_peft_model(Source(name).model(), config)
    pairs = []
    for own, adapter in adapters(ours).items():
        peer = theirs.base_model.model.get_submodule(own)
        pairs += [(adapter.A, peer.lora_A["default"].weight), (adapter.B, peer.lora_B["default"].weight)]
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == sum(a.numel() for a, _ in pairs)
    with torch.no_grad():
        for mine, peer in pairs:
            peer.copy_(mine)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=1e-5)
    ours(IDS, labels=IDS).loss.backward()
    theirs(IDS, labels=IDS).loss.backward()
    for mine, peer in pairs:
        assert float((mine.grad - peer.grad).abs().max()) < 1e-4 * float(peer.grad.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_merged_is_unmerged(name: str):
    model = disturb(adapted(name))
    base: Any = Source(name).model()
    logits = model(IDS).logits
    assert float((logits - base(IDS).logits).abs().max()) > 0.05
    merged = merge(model)
    assert not adapters(merged)
    torch.testing.assert_close(merged(IDS).logits, logits, atol=2e-5, rtol=1e-4)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in base.named_parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_adapters_off_is_the_base_bit_for_bit_and_they_come_back(name: str):
    base: Any = Source(name).model()
    expected = base(IDS).logits
    model = disturb(adapted(name))
    on = model(IDS).logits
    with adapters_off(model):
        assert torch.equal(model(IDS).logits, expected)
        with adapters_off(model):
            assert torch.equal(model(IDS).logits, expected)
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, on)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert torch.equal(model(IDS).logits, on)


def test_start_depends_on_the_generator_alone():
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 2**31)
        return next(iter(adapters(adapted("tiny:llama", seed=seed)).values())).A.detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_a_starts_uniform_within_the_reference_codes_bound():
    adapter = adapters(adapted("tiny:llama", rank=16))["model.layers.0.mlp.down_proj"]
    # kaiming_uniform with a = sqrt(5): 1 / sqrt(fan_in), of 128 inputs
    assert adapter.A.shape == (16, 128)
    bound = 128**-0.5
    assert 0.95 * bound < float(adapter.A.detach().abs().max()) <= bound
    assert float(adapter.A.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not adapter.B.any()


def test_adapter_dtype():
    base = Source("tiny:llama", dtype="bfloat16").model
    for dtype, expected in (("float32", torch.float32), ("model", torch.bfloat16)):
        model = disturb(adapted("tiny:llama", base(), adapter_dtype=dtype))
        assert all(a.A.dtype == a.B.dtype == expected for a in adapters(model).values())
        assert model(IDS).logits.dtype == torch.bfloat16
        model(IDS, labels=IDS).loss.backward()
        assert all(a.A.grad is not None and a.A.grad.dtype == expected for a in adapters(model).values())


def test_targets_by_name():
    model = adapted("tiny:llama", targets=("q_proj", "mlp.down_proj"))
    assert {name.rpartition(".")[2] for name in adapters(model)} == {"q_proj", "down_proj"}
    assert len(adapters(model)) == 6
    assert len(adapters(adapted("tiny:llama", targets=("layers.1.mlp.down_proj",)))) == 1


def test_unknown_target_names_those_there_are():
    with pytest.raises(Unsupported, match=r"no linear layer 'query'.*down_proj.*q_proj"):
        adapted("tiny:llama", targets=("q_proj", "query"))
    # a suffix is of whole names
    with pytest.raises(Unsupported, match="'proj'"):
        adapted("tiny:llama", targets=("proj",))


def test_rank_beyond_the_smaller_side():
    adapted("tiny:llama", rank=32)
    with pytest.raises(Unsupported, match=r"rank=33 .*layers.0.self_attn.k_proj.* rank <= 32"):
        adapted("tiny:llama", rank=33)


def test_dropout_acts_in_training_only():
    model = disturb(adapted("tiny:llama", dropout=0.5))
    still = disturb(adapted("tiny:llama"))
    assert torch.equal(model.eval()(IDS).logits, still.eval()(IDS).logits)
    assert not torch.equal(model.train()(IDS).logits, still.train()(IDS).logits)
