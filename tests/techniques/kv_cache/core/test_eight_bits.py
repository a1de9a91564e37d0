"""Eight bits a token: the text is restored, and products with codes are those with what is restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from techniques.kv_cache.core import eight_bits
from techniques.kv_cache.core.eight_bits import BLOCK, PerTokenInt8

ROWS, HEADS, GROUP = 2, 3, 5


def states(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(2)
    wide = torch.ones(width)
    wide[3] = 30.0
    return (torch.randn(ROWS, HEADS, tokens, width) * wide + 2).to(dtype)


def filled(given: Tensor, context: int, values: bool) -> PerTokenInt8:
    store = PerTokenInt8(given.shape[2], values)
    store.fill(given[:, :, :context])
    for at in range(context, given.shape[2]):
        store.append(given[:, :, at])
    return store


@pytest.mark.parametrize("values", [False, True])
def test_every_token_is_within_half_a_step(values: bool) -> None:
    given = states(40, 16)
    store = filled(given, 30, values)
    assert store.restored().shape == store.steps().shape == given.shape
    assert bool((store.steps() > 0).all())
    assert ((store.restored() - given).abs() <= store.steps() / 2 * 1.001 + 1e-5).all()


def test_storage_is_a_byte_an_element_and_never_moves() -> None:
    for values, codes in ((False, 40 * 16), (True, 2 * BLOCK * 16)):
        store = PerTokenInt8(40, values)
        store.fill(states(30, 16))
        pointers = [part.data_ptr() for part in store.held()]
        for at in range(10):
            store.append(states(40, 16)[:, :, 30 + at])
        assert [part.data_ptr() for part in store.held()] == pointers
        held = sum(part.untyped_storage().nbytes() for part in store.held())
        assert held == ROWS * HEADS * (codes + 40 * 2)


# widths of whole blocks go through the kernel in 16 bits, and others do not
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float16, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
def test_products_are_those_with_what_is_restored(width: int, tokens: int, dtype: torch.dtype, allowed: float) -> None:
    given = states(tokens + 2, width, dtype)
    query = torch.randn(ROWS, HEADS, GROUP, width).to(dtype)
    keys = filled(given, tokens, False)
    exact = keys.restored().double() if dtype == torch.float32 else restored(keys)
    scores = query.double() @ exact.mT
    scale = query.double().abs() @ reach(keys).mT
    assert ((keys.scores(query) - scores).abs() <= allowed * scale + 1e-6).all()
    values = filled(given, tokens, True)
    exact = values.restored().double() if dtype == torch.float32 else restored(values)
    weights = torch.rand(ROWS, HEADS, GROUP, tokens + 2)
    mixed = weights.double() @ exact
    assert ((values.mixed(weights) - mixed).abs() <= allowed * (weights.double() @ reach(values)) + 1e-6).all()


def test_small_weights_of_a_long_context_are_not_lost() -> None:
    given = (states(20_000, 8)[:1, :1] / 1000).half()  # weight times step is below what float16 can hold
    store = filled(given, 20_000, True)
    weights = torch.full((1, 1, 1, 20_000), 1 / 20_000)
    expected = restored(store).mean(2, keepdim=True)
    assert (store.mixed(weights).double() - expected).abs().max() < 1e-3 * expected.abs().max()


def reach(store: PerTokenInt8) -> Tensor:
    """How far from 0 an element's codes can lead: what products in 16 bits are rounded by a share of."""
    return store.restored().double().abs() + 128 * store.steps()


def restored(store: PerTokenInt8) -> Tensor:
    """Without the rounding to 16 bits."""
    dtype, store.dtype = store.dtype, torch.float64
    exact = store.restored()
    store.dtype = dtype
    return exact


def test_the_kernel_is_kept_from_rows_that_it_would_read_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    true = torch._weight_int8pack_mm

    def spy(rows: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        asked.append(tuple(codes.shape))
        return true(rows, codes, scales)

    monkeypatch.setattr(eight_bits.torch, "_weight_int8pack_mm", spy)
    for width in (16, 48, 64):
        keys, values = (filled(states(50, width, torch.bfloat16), 40, of) for of in (False, True))
        keys.scores(torch.randn(ROWS, HEADS, GROUP, width).bfloat16())
        values.mixed(torch.rand(ROWS, HEADS, GROUP, 50))
    assert all(shape[1] % BLOCK == 0 for shape in asked)
    usable: Any = "AVX" in torch.backends.cpu.get_cpu_capability()
    assert ((50, 64) in asked, (64, 64) in asked) == (usable, usable)
