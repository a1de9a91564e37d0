"""One kernel for ragged heads is told the right segments: against each head's own attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from techniques.kv_cache.core import varlen
from techniques.kv_cache.core.ragged import RaggedLayer

ROWS, HEADS, GROUP, WIDTH, TOKENS = 2, 3, 4, 16, 40
COUNTS = [[40, 3, 17], [1, 29, 8]]


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    seqused_k: Tensor,
) -> Tensor:
    """What `varlen_attn` is documented to do, sequence by sequence."""
    assert all(t.dtype == torch.int32 for t in (cu_seq_q, cu_seq_k, seqused_k))
    out = torch.full_like(query, torch.nan)
    for at in range(len(cu_seq_q) - 1):
        rows = slice(int(cu_seq_q[at]), int(cu_seq_q[at + 1]))
        slots = slice(int(cu_seq_k[at]), int(cu_seq_k[at]) + int(seqused_k[at]))
        assert slots.stop <= int(cu_seq_k[at + 1])
        assert rows.stop - rows.start <= max_q
        assert slots.stop - slots.start <= max_k
        weights = (query[rows, 0] @ key[slots, 0].T * scale).softmax(-1)
        out[rows, 0] = weights @ value[slots, 0]
    return out


class Held(RaggedLayer):
    def read_prompt(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> None:
        raise AssertionError("nothing is chosen here")


def layer(**options: Any) -> tuple[Held, Tensor]:
    """Heads of different lengths with free slots behind them, full of what must not be read; and queries."""
    generator = torch.Generator().manual_seed(4)
    keys, values = torch.randn(2, ROWS, HEADS, TOKENS, WIDTH, generator=generator).to(**options).unbind()
    query = torch.randn(ROWS, HEADS * GROUP, 1, WIDTH, generator=generator).to(**options)
    made = Held()
    made.lazy_initialization(keys, values)
    kept = [[torch.arange(count, device=keys.device) for count in row] for row in COUNTS]
    made.store(keys, values, kept, torch.full((ROWS, HEADS), 5), {})
    made.seen = TOKENS
    filled = torch.zeros(len(made.keys), dtype=torch.bool)
    for row in range(ROWS):
        for head in range(HEADS):
            filled[made.segment(row, head)] = True
    made.keys[~filled] = made.values[~filled] = 1e3
    return made, query


def expected(made: Held, query: Tensor) -> Tensor:
    out = torch.empty(ROWS, 1, HEADS * GROUP, WIDTH)
    for row in range(ROWS):
        for head in range(HEADS * GROUP):
            held = made.segment(row, head // GROUP)
            weights = (made.keys[held].float() @ query[row, head, 0].float() * 0.3).softmax(0)
            out[row, 0, head] = weights @ made.values[held].float()
    return out


def test_every_segment_is_a_sequence() -> None:
    made, query = layer()
    grouped = query.reshape(ROWS * HEADS, GROUP, WIDTH)
    where = made.starts.flatten(), made.lengths.flatten()
    out = varlen.attend(grouped, made.keys, made.values, *where, 0.3, kernel)
    assert (out.reshape(ROWS, 1, HEADS * GROUP, WIDTH) - expected(made, query)).abs().max() < 1e-5


def test_a_ragged_layer_gives_it_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    made, query = layer()
    by_head = made.attend(None, query, 0.3)
    monkeypatch.setattr(varlen, "usable", lambda query: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    at_once = made.attend(None, query, 0.3)
    assert (by_head - expected(made, query)).abs().max() < 1e-5
    assert (at_once - by_head).abs().max() < 1e-5


def test_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not varlen.usable(torch.zeros(1, 4, 1, 64, dtype=torch.bfloat16)), "not on a CPU"

    def taken(dtype: torch.dtype = torch.bfloat16, width: int = 64, generation: int = 8) -> bool:
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (generation, 0))
        query: Any = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 4, 1, width), device="cuda")
        return varlen.usable(query)

    assert taken()
    assert taken(torch.float16, 256, 9)
    assert not taken(torch.float32)
    assert not taken(width=60)
    assert not taken(width=264)
    assert not taken(generation=7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", varlen.HALF)
def test_the_kernel_itself(dtype: torch.dtype) -> None:
    made, query = layer(device="cuda", dtype=dtype)
    assert varlen.usable(query)
    out = made.attend(None, query, 0.3).float().cpu()
    made.keys, made.values = made.keys.cpu(), made.values.cpu()
    assert (out - expected(made, query.cpu())).abs().max() < 0.02
