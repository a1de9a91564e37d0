"""A quantised model is the model with its linear layers quantised, and is never there in 16 bits."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import ModelError, Unsupported
from bench.models import Source
from bench.shapes import TINY
from techniques.finetuning.core.blockwise import Format
from techniques.finetuning.core.building import bits_per_parameter, constants, quantised_model, upright
from techniques.finetuning.core.lora import (
    LoraLinear,
    adapter_state,
    adapters_off,
    attach,
    linear_layers,
    load_adapters,
    merge,
)
from techniques.finetuning.core.quantised_linear import Linear4bit, Linear8bit, QuantisedLinear

MODELS = ["tiny:llama", "tiny:gpt2", "tiny:qwen3"]
IDS = torch.randint(256, (2, 11), generator=torch.Generator().manual_seed(3))
FORM = Format("nf4", 64, True)


def four_bit(weight: Tensor, bias: Tensor | None) -> QuantisedLinear:
    return Linear4bit(weight, bias, None, FORM, "reference")


def eight_bit(weight: Tensor, bias: Tensor | None) -> QuantisedLinear:
    return Linear8bit(weight, bias, None)


def adapted(name: str, seed: int = 0, rank: int = 4) -> Any:
    model = quantised_model(Source(name), four_bit)
    return attach(model, rank, 12.0, 0.0, "all-linear", torch.Generator().manual_seed(seed))


def disturb(model: Any, size: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.B.normal_(0, size, generator=generator)
    return model


def by_hand(name: str, quantiser: Any) -> Any:
    """The whole model in full precision, every linear layer's weight replaced by what its few bits stand for."""
    model: Any = Source(name).model()
    head = model.get_output_embeddings()
    with torch.no_grad():
        for layer in linear_layers(model).values():
            if layer is not head:
                weight = upright(layer, layer.weight)
                upright(layer, layer.weight).copy_(quantiser(weight, None).weight_in(torch.float32))
    return model


@pytest.mark.parametrize("quantiser", [four_bit, eight_bit])
@pytest.mark.parametrize("name", MODELS)
def test_is_the_model_with_its_linear_layers_quantised(name: str, quantiser: Any):
    built: Any = quantised_model(Source(name), quantiser)
    full: Any = Source(name).model()
    logits = built(IDS).logits
    torch.testing.assert_close(logits, by_hand(name, quantiser)(IDS).logits, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(logits, full(IDS).logits, atol=1e-3)
    head = built.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    assert (head.weight is built.get_input_embeddings().weight) == full.config.tie_word_embeddings
    expected = {n for n, layer in linear_layers(full).items() if layer is not full.get_output_embeddings()}
    assert {n for n, m in built.named_modules() if isinstance(m, QuantisedLinear)} == expected
    assert not any(p.requires_grad for p in built.parameters())
    assert not built.training
    assert {str(t.device) for t in (*built.parameters(), *built.buffers())} == {"cpu"}


@pytest.mark.parametrize("name", MODELS)
def test_built_from_a_folder_holds_nothing_of_its_file(name: str, tmp_path: Path):
    Source(name).model().save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    built: Any = quantised_model(source, four_bit)
    assert torch.equal(built(IDS).logits, quantised_model(Source(name), four_bit)(IDS).logits)
    owned = {name: t.untyped_storage().nbytes() for name, t in built.state_dict().items()}
    assert all(owned[name] <= t.nbytes + 1 for name, t in built.state_dict().items())


def test_biases_are_kept(tmp_path: Path):
    model: Any = Source("tiny:gpt2").model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
        for layer in linear_layers(model).values():
            if layer is not model.get_output_embeddings():
                weight = upright(layer, layer.weight)
                upright(layer, layer.weight).copy_(four_bit(weight, None).weight_in(torch.float32))
    model.save_pretrained(tmp_path)
    # weights of 4 bits are quantised to themselves, so all that could differ is the biases
    built: Any = quantised_model(Source(str(tmp_path)), four_bit)
    torch.testing.assert_close(built(IDS).logits, model(IDS).logits, atol=5e-3, rtol=1e-3)
    own = built.transformer.h[1].mlp.c_fc.bias
    assert torch.equal(own, model.transformer.h[1].mlp.c_fc.bias)
    assert float(own.abs().max()) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_only_one_layer_of_full_weights_exists_at_any_time(name: str, monkeypatch: pytest.MonkeyPatch):
    alive: list[weakref.ref[Tensor]] = []
    most, layer = 0, 0
    read = Source.layers

    def count() -> int:
        return sum(t.nbytes for ref in alive if (t := ref()) is not None and t.dim() == 2)

    def watched(self: Source) -> Iterator[tuple[str, dict[str, Tensor]]]:
        nonlocal most, layer
        for prefix, tensors in read(self):
            alive.extend(weakref.ref(t) for t in tensors.values())
            most = max(most, count())
            if prefix.rpartition(".")[2].isdigit():
                layer = max(layer, sum(t.nbytes for t in tensors.values() if t.dim() == 2))
            yield prefix, tensors

    monkeypatch.setattr(Source, "layers", watched)
    model = quantised_model(Source(name), four_bit)
    embeddings = max(p.nbytes for p in model.parameters())
    assert most <= max(2 * layer, embeddings + layer)
    assert count() == 0, "the 16-bit weights outlive their quantisation"


def test_bits_and_constants_of_a_model():
    model = quantised_model(Source("tiny:llama"), four_bit)
    layers = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    held = sum(m.codes.nbytes for m in layers) + sum(t.nbytes for t in constants(model))  # type: ignore[union-attr, operator]
    weights = sum(m.in_features * m.out_features for m in layers)
    assert bits_per_parameter(model) == pytest.approx(8 * held / weights)
    # tiny layers do not fill a block of 256 constants
    assert 4.12 < bits_per_parameter(model) < 4.2


def test_a_model_with_nan_names_the_layer(tmp_path: Path):
    model: Any = Source("tiny:llama").model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layer model.layers.1.mlp.up_proj: 1 of 8192 weights are inf or nan"):
        quantised_model(Source(str(tmp_path)), four_bit)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_start_at_the_quantised_base_and_switch_off_to_it(name: str):
    base: Any = quantised_model(Source(name), four_bit)
    expected = base(IDS).logits
    model = adapted(name)
    assert torch.equal(model(IDS).logits, expected)
    disturb(model)
    assert not torch.allclose(model(IDS).logits, expected, atol=1e-2)
    with adapters_off(model):
        assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("name", MODELS)
def test_trains_as_many_weights_as_the_ranks_say(name: str):
    model = adapted(name)
    layers = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(4 * (layer.in_features + layer.out_features) for layer in layers) > 0


@pytest.mark.parametrize("name", MODELS)
def test_adapter_gradients_are_those_of_the_dequantised_model(name: str):
    ours = disturb(adapted(name))
    plain = by_hand(name, four_bit)
    theirs = disturb(attach(plain, 4, 12.0, 0.0, "all-linear", torch.Generator().manual_seed(0)))
    for model in (ours, theirs):
        model(IDS, labels=IDS).loss.backward()
    trained = [(n, p.grad) for n, p in ours.named_parameters() if p.requires_grad]
    other = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert {n for n, _ in trained} == other.keys()
    for key, gradient in trained:
        assert gradient is not None
        torch.testing.assert_close(gradient, other[key], atol=1e-5 * float(other[key].abs().max()), rtol=1e-3)


def test_rank_beyond_the_smaller_side_of_a_quantised_layer():
    with pytest.raises(Unsupported, match=r"rank=33 .*k_proj.* rank <= 32"):
        adapted("tiny:llama", rank=33)


@pytest.mark.parametrize("name", MODELS)
def test_stored_adapters_give_the_same_logits(name: str, tmp_path: Path):
    model = disturb(adapted(name))
    file = tmp_path / "adapter.safetensors"
    save_file(adapter_state(model), file)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert trained <= file.stat().st_size < trained + 20_000
    fresh = adapted(name, seed=7)
    assert not torch.equal(fresh(IDS).logits, model(IDS).logits)
    load_adapters(fresh, load_file(file))
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    with pytest.raises(Unsupported, match=r"stored adapters do not fit.*rank and targets"):
        load_adapters(adapted(name, rank=3), load_file(file))


@pytest.mark.parametrize("name", MODELS)
def test_merging_rounds_the_sum_again(name: str):
    model = disturb(adapted(name), 0.02)
    before = model(IDS).logits.detach()
    with adapters_off(model):
        base = model(IDS).logits
    merged = merge(copy.deepcopy(model))
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    after = merged(IDS).logits.detach()
    # not the same as unmerged, but nearer to it than to the base
    assert not torch.allclose(after, before, atol=1e-4)
    assert float((after - before).norm()) < 0.7 * float((after - base).norm())
    assert bits_per_parameter(merged) < 4.2


class SixteenBits(TorchDispatchMode):
    """The most bytes of bfloat16 that were alive at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.bfloat16 and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(count for _, count in self.alive.values()))
        return out


@pytest.mark.parametrize("quantiser", [four_bit, eight_bit])
def test_a_deep_model_is_never_there_in_16_bits(quantiser: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TINY, "deep", {**TINY["llama"], "num_hidden_layers": 24})  # type: ignore[index]
    source = Source("tiny:deep", dtype="bfloat16")
    with SixteenBits() as seen:
        model = quantised_model(source, quantiser)
    layers = [sum(t.nbytes for t in tensors.values()) for prefix, tensors in source.layers() if ".layers." in prefix]
    assert len(layers) == 24
    kept = sum(p.nbytes for p in model.parameters())
    # the embeddings stay; of the layers two are there at once, at most
    assert layers[0] < seen.most < kept + 2.5 * layers[0] < sum(layers) / 4
