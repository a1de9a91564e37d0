"""The replayed heap: by hand, by its laws, and beside the C library itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.predict.heap import ALIGNMENT, MAPPED, TRIMMED, Heap
from bench.predict.simulation import Allocator

MIB = 2**20


def test_a_block_takes_its_bytes_and_its_alignment() -> None:
    heap = Heap()
    heap.take(1, MIB)
    assert heap.live == heap.held == MIB + ALIGNMENT
    assert heap.idle == 0


def test_a_hole_stays_resident_until_a_block_fills_it() -> None:
    heap = Heap()
    for key in (1, 2):
        heap.take(key, MIB)
    heap.give(1)
    assert heap.idle == MIB + ALIGNMENT
    heap.take(3, MIB)
    assert heap.idle == 0
    assert heap.held == 2 * (MIB + ALIGNMENT)


def test_the_smallest_hole_that_is_large_enough_is_taken() -> None:
    heap = Heap()
    for key, size in enumerate((4 * MIB, MIB, 2 * MIB, MIB, 8 * MIB, MIB)):
        heap.take(key, size)
    for key in (0, 2, 4):
        heap.give(key)
    before = heap.held
    heap.take(9, 2 * MIB)  # the hole of 2 MiB, so that those of 4 and 8 are whole
    heap.take(10, 4 * MIB)
    heap.take(11, 8 * MIB)
    assert heap.held == before
    assert heap.idle == 0


def test_neighbouring_holes_are_one() -> None:
    heap = Heap()
    for key in range(4):
        heap.take(key, MIB)
    for key in (0, 2, 1):
        heap.give(key)
    held = heap.held
    heap.take(9, 3 * MIB)
    assert heap.held == held


def test_a_large_block_is_the_kernels_and_goes_back_at_once() -> None:
    heap = Heap()
    heap.take(1, MAPPED)
    assert heap.held >= MAPPED
    heap.give(1)
    assert heap.held == 0


def test_the_end_of_the_heap_goes_back_when_it_is_large() -> None:
    heap = Heap()
    blocks = TRIMMED // (8 * MIB)
    for key in range(blocks):
        heap.take(key, 8 * MIB)
    for key in reversed(range(1, blocks)):
        heap.give(key)
    assert heap.idle == (blocks - 1) * (8 * MIB + ALIGNMENT)
    heap.give(0)
    assert heap.held == 0


def test_a_trim_gives_pages_back_and_keeps_the_places() -> None:
    heap = Heap()
    for key in (1, 2):
        heap.take(key, MIB)
    heap.give(1)
    heap.trim()
    assert heap.idle == 0
    heap.take(3, MIB // 2)  # in the hole: resident again, and it alone
    assert heap.held == MIB + MIB // 2 + 2 * ALIGNMENT


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3 * MAPPED)), max_size=80), st.booleans())
def test_nothing_is_lost(moves: list[tuple[int, int]], trim: bool) -> None:
    heap: Allocator = Heap()
    live: dict[int, int] = {}
    for key, size in moves:
        if key in live:
            heap.give(key)
            del live[key]
        else:
            heap.take(key, size)
            live[key] = size
        if trim:
            heap.trim()
        assert heap.idle >= 0
        assert heap.held - heap.idle >= sum(live.values())
    for key in live:
        heap.give(key)
    heap.trim()
    assert heap.held == heap.idle == 0


REAL = """
import ctypes, json, random, sys
libc = ctypes.CDLL(None)
libc.mallopt(-3, 32 * 2**20); libc.mallopt(-1, 64 * 2**20)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = Info
draw, blocks, moves, free = random.Random(0), {}, [], []
for number in range(1500):
    if blocks and draw.random() < 0.45:
        key = draw.choice(sorted(blocks)); libc.free(blocks.pop(key)); moves.append((key, 0))
    else:
        size, block = int(2 ** draw.uniform(16, 24)), ctypes.c_void_p()
        libc.posix_memalign(ctypes.byref(block), 64, ctypes.c_size_t(size)); blocks[number] = block
        moves.append((number, size))
    free.append((libc.mallinfo2().uordblks + libc.mallinfo2().hblkhd, libc.mallinfo2().fordblks))
print(json.dumps([moves, free]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_it_keeps_free_what_the_c_library_keeps_free() -> None:
    ran = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    moves, real = json.loads(ran.stdout)
    heap, foreseen = Heap(), []
    for key, size in moves:
        if size:
            heap.take(key, size)
        else:
            heap.give(key)
        foreseen.append(heap.idle)
    apart = [abs(idle - free) / used for idle, (used, free) in zip(foreseen, real, strict=True)][len(real) // 2 :]
    assert max(free for _, free in real) > 50 * MIB  # there is something to foresee
    assert sum(apart) / len(apart) < 0.05
