from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.models import Source
from bench.probes import resident

MIB = 1 << 20
BLOCK = 16 * 1024


@pytest.fixture
def at_rest() -> None:
    """Garbage of other tests goes first: while a test runs, it would be freed or filled."""
    resident.at_rest()


def fragments(count: int) -> list[ctypes.Array[ctypes.c_char]]:
    """Blocks of the heap, every other one given back."""
    blocks = [ctypes.create_string_buffer(BLOCK) for _ in range(count)]
    return blocks[::2]


@pytest.mark.usefixtures("at_rest")
def test_what_the_heap_keeps_free_is_resident_until_it_is_given_back() -> None:
    before = resident.free_in_heap()
    held = fragments(4000)
    free = resident.free_in_heap()
    assert free - before == pytest.approx(2000 * BLOCK, rel=0.1)
    resident.give_back()
    left = resident.free_in_heap()
    assert left - before < 0.5 * 2000 * BLOCK
    assert len(held) == 2000


@pytest.mark.usefixtures("at_rest")
def test_the_heap_in_use_is_not_free() -> None:
    before = resident.free_in_heap()
    held = [ctypes.create_string_buffer(BLOCK) for _ in range(2000)]
    assert resident.free_in_heap() - before < MIB
    assert len(held) == 2000


def test_without_glibc_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_libc", None)
    assert resident.free_in_heap() is None
    resident.give_back()


def test_tensors_in_mapped_files_are_told_apart(tmp_path: Path) -> None:
    save_file({"a": torch.ones(64, 1024)}, tmp_path / "weights.safetensors")
    mapped = load_file(tmp_path / "weights.safetensors")["a"]
    shared = torch.from_file(str(tmp_path / "raw"), shared=True, size=4096, dtype=torch.uint8)
    own = torch.ones(4)
    found = resident.in_files({"weights": [own, shared], "other": [own], "read": [mapped]})
    assert found["weights"] == [shared]
    assert "other" not in found


def test_loading_leaves_nothing_in_files(tmp_path: Path) -> None:
    Source("tiny:llama").model().save_pretrained(tmp_path)
    model = Source(str(tmp_path)).model()
    assert resident.in_files({"weights": model.parameters()}) == {}


def test_garbage_is_no_part_of_a_process_at_rest() -> None:
    gc.disable()
    try:
        cycle: list[object] = [torch.ones(64 * MIB, dtype=torch.uint8)]
        cycle.append(cycle)
        held = resident.allocated()
        del cycle
        assert held - resident.at_rest()["allocated"] >= 64 * MIB
    finally:
        gc.enable()
