"""Codes stand for values within half a step, in just the bits that are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from techniques.kv_cache.core.codes import Codes, dequantize, pack, quantize, unpack
from techniques.kv_cache.core.quantized import PerChannel, PerToken, QuantizedLayer


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("wide", [5, 8, 24])
def test_packing_loses_nothing(wide: int, bits: int) -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 2**bits, (3, 8, wide), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 8 * bits // 8, wide)
    assert torch.equal(unpack(packed, bits), codes)
    assert len(packed.unique()) > 2**bits // 4
    # a view into wider rows, whether these are of whole words or not
    for more in (3, 8):
        room = torch.zeros(3, packed.shape[1], wide + more, dtype=torch.uint8)
        room[..., :wide] = packed
        assert torch.equal(unpack(room[..., :wide], bits), codes)


def test_a_byte_holds_one_code_of_each_part() -> None:
    codes = torch.tensor([1, 2, 3, 0, 0, 0, 0, 3], dtype=torch.uint8)[:, None]
    assert pack(codes, 2)[:, 0].tolist() == [0b00001101, 0b11000010]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("offset", [0.0, 50.0, -1000.0])
def test_every_element_is_within_half_a_step(bits: int, offset: float) -> None:
    torch.manual_seed(1)
    groups = torch.randn(200, 16) * torch.logspace(-3, 2, 200)[:, None] + offset
    codes = quantize(groups, bits)
    error = (dequantize(codes) - groups).abs()
    assert (error <= codes.step.float() / 2 * (1 + 1e-4) + groups.abs() * 2**-23).all()
    # the step is the range over the number of steps, but for 16 bits of rounding
    wide = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    assert (codes.step[:, 0].float() <= wide * 1.003 + abs(offset) * 2e-3 + 6.2e-5).all()
    assert pack(codes.codes.mT, bits).untyped_storage().nbytes() == 200 * 16 * bits // 8


@pytest.mark.parametrize("bits", [2, 8])
def test_a_group_of_equal_values_and_tiny_ones(bits: int) -> None:
    for groups in (torch.zeros(1, 8), torch.full((1, 8), 3.3), torch.randn(1, 8) * 1e-9):
        codes = quantize(groups, bits)
        error = (dequantize(codes) - groups).abs()
        assert error.isfinite().all()
        assert (error <= codes.step.float() / 2 + 1e-6).all()


def states(tokens: int, width: int = 8) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, tokens, width) * torch.tensor([1.0, 1, 1, 30, 1, 1, 1, 1])[:width]


@pytest.mark.parametrize("kind", [PerToken, PerChannel])
@pytest.mark.parametrize("context", [1, 3, 4, 7, 8, 9, 12, 13, 16, 17, 40])
def test_the_text_is_restored_in_order(kind: Any, context: int) -> None:
    given = states(context + 20)
    store = made(kind, context + 21, bits=4)
    store.fill(given[:, :, :context])
    for seen in range(context, context + 20):
        check(store, given[:, :, :seen], kind)
        store.append(given[:, :, seen])
    check(store, given, kind)


def made(kind: Any, capacity: int, bits: int, residual: int = 8) -> Any:
    keep, block = (residual, 4) if kind is PerToken else (0, residual)
    return kind(capacity, bits, 4, keep, block)


def check(store: Any, given: Tensor, kind: Any) -> None:
    restored, steps = store.restored(), store.steps()
    assert restored.shape == steps.shape == given.shape
    assert ((restored - given).abs() <= steps / 2 * 1.001 + 1e-5).all()
    seen = given.shape[2]
    exact = min(seen, 9 + (seen - 9) % 4) if kind is PerToken else (seen - 1) % 8 + 1
    assert torch.equal(restored[:, :, seen - exact :], given[:, :, seen - exact :])
    assert bool((steps[:, :, : seen - exact] > 0).all())
    assert not bool(steps[:, :, seen - exact :].any())


def test_storage_is_what_the_bits_say_and_never_grows() -> None:
    tokens, new = 50, 14
    for store, rounded, exact in [(PerToken(64, 2, 8, 16, 4), 44, 20), (PerChannel(64, 2, 4, 0, 16), 48, 16)]:
        store.fill(states(tokens))
        pointers = [part.data_ptr() for part in store.held()]
        for at in range(new):
            store.append(states(tokens + new)[:, :, tokens + at])
        assert [part.data_ptr() for part in store.held()] == pointers
        group = 8 if isinstance(store, PerToken) else 4
        elements = 2 * 3 * 8 * rounded
        bytes_ = elements * 2 // 8 + elements // group * 4 + 2 * 3 * exact * 8 * 4
        assert sum(part.untyped_storage().nbytes() for part in store.held()) == bytes_


def test_channels_that_stand_out_need_groups_of_their_own() -> None:
    given = states(65)
    errors = []
    for store in (PerChannel(65, 2, 32, 0, 32), PerToken(65, 2, 8, 0, 32)):
        store.fill(given)
        quiet = [channel for channel in range(8) if channel != 3]
        errors.append((store.restored() - given)[..., :64, quiet].square().mean())
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("context", [1, 8, 9, 17, 40])
def test_scores_are_those_of_the_restored_keys(context: int) -> None:
    store = PerChannel(context + 4, 2, 4, 0, 8)
    store.fill(states(context))
    for _ in range(3):
        query = torch.randn(2, 3, 5, 8)
        assert (store.scores(query) - query @ store.restored().transpose(-1, -2)).abs().max() < 1e-4
        store.append(torch.randn(2, 3, 8))


@pytest.mark.parametrize("residual", [1, 8])
@pytest.mark.parametrize("context", [1, 8, 9, 17, 40])
def test_values_are_mixed_as_if_they_were_restored(residual: int, context: int) -> None:
    store = made(PerToken, context + 4, bits=4, residual=residual)
    store.fill(states(context))
    for seen in range(context, context + 3):
        weights = torch.rand(2, 3, 5, seen)
        assert (store.mixed(weights) - weights @ store.restored()).abs().max() < 1e-3
        store.append(torch.randn(2, 3, 8))


@pytest.mark.parametrize("context", [1, 40, 65, 200])
def test_values_in_16_bits_are_mixed_by_the_kernel_for_eight(context: int) -> None:
    torch.manual_seed(3)
    given = torch.randn(2, 3, context, 64).bfloat16()
    weights = torch.rand(2, 3, 5, context)
    found, expected = (filled(given.to(dtype)).mixed(weights) for dtype in (torch.bfloat16, torch.float32))
    assert (found - expected).abs().max() < 2**-8 * weights.sum(-1).max() * given.abs().max()


def test_small_weights_of_a_long_context_are_not_lost() -> None:
    torch.manual_seed(3)
    given = ((torch.randn(1, 1, 20_000, 32) + 1) / 1000).half()
    weights = torch.full((1, 1, 1, 20_000), 1 / 20_000)
    store = filled(given)
    expected = store.restored().double().mean(2, keepdim=True)
    assert (store.mixed(weights).double() - expected).abs().max() < 2e-3 * expected.abs().max()


def filled(given: Tensor) -> PerToken:
    store = PerToken(given.shape[2] + 8, 2, 32, 8, 32)
    store.fill(given)
    return store


def test_a_layer_attends_to_the_prompt_as_it_is_and_to_the_rest_rounded() -> None:
    layer = QuantizedLayer(PerChannel(20, 4, 4, 0, 8), PerToken(20, 4, 8, 1, 4))
    given = states(12)
    keys, values = layer.update(given[:, :, :10], -given[:, :, :10])
    assert torch.equal(keys, given[:, :, :10])
    assert torch.equal(values, -given[:, :, :10])
    layer.update(given[:, :, 10:11], -given[:, :, 10:11])
    query = torch.randn(2, 6, 1, 8)
    restored, mixed = (part.repeat_interleave(2, 1) for part in layer.restored())
    assert not torch.equal(layer.restored()[0], given[:, :, :11])
    expected = (query @ restored.transpose(-1, -2) * 0.3).softmax(-1) @ mixed
    assert (layer.read_token(None, query, 0.3) - expected.transpose(1, 2)).abs().max() < 1e-4
    assert layer.get_seq_length() == 11
    assert layer.positions().shape == (2, 3, 11)
    with pytest.raises(AssertionError, match="2 tokens at once behind the prompt"):
        layer.update(given[:, :, :2], given[:, :, :2])


def test_codes_are_three_tensors() -> None:
    assert isinstance(quantize(torch.randn(2, 8), 4), Codes)
