"""Which bytes the C library keeps free while a program takes and gives back memory: glibc's malloc, replayed.

Blocks are cut from a heap, out of the smallest hole that is large enough, and a block that is given back is merged with
the holes beside it. Large blocks come from the kernel and go back to it at once. What is left free inside the heap
stays with the process: on a CPU, that is fragmentation.

Source: glibc 2.36, malloc/malloc.c (`_int_malloc`, `sysmalloc`, `_int_free`, `systrim`) and mallopt(3). Simplified: one
arena, no bins for small blocks, which are merged with their neighbours at once.
"""

from __future__ import annotations

from bench.predict.holes import Holes

PAGE = 4096
ALIGNMENT = 64
"""Of every block that torch asks for on a CPU [B]."""
MAPPED = 32 * 1024 * 1024
"""M_MMAP_THRESHOLD: blocks from this size on come from the kernel, where no hole fits [B]. It begins lower and grows
with what is given back; by the time that the libraries are imported it has grown to this, its limit."""
PAD = 128 * 1024
"""M_TOP_PAD: how much more the heap grows by than is asked for [B]."""
CONSOLIDATED = 64 * 1024
"""FASTBIN_CONSOLIDATION_THRESHOLD: a hole of this size makes the heap look whether its end can go back [B]."""

TRIMMED = 2 * MAPPED
"""M_TRIM_THRESHOLD: a free end of the heap goes back from this size on [B]."""


class Heap:
    """What a process has from the kernel for the blocks it holds."""

    def __init__(self) -> None:
        self.live = 0
        """Bytes in use [B]."""
        self._mapped: dict[int, int] = {}
        """Key -> size of a block of the kernel's own."""
        self._used: dict[int, tuple[int, int]] = {}
        """Key -> begin and size of a block of the heap."""
        self._top = self._touched = self._end = 0
        """Behind the last block; how far pages are resident; how far the heap reaches."""
        self._holes = Holes()

    @property
    def idle(self) -> int:
        """Resident and not in use [B]."""
        return self._holes.resident + self._touched - self._top

    @property
    def held(self) -> int:
        """Resident [B]."""
        return self.live + self.idle

    @property
    def reserved(self) -> int:
        return self.held

    @property
    def least(self) -> int:
        return self.held

    def take(self, key: int, size: int) -> None:
        """Ask for a block of `size` bytes, named by `key` until it is given back."""
        size = -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        begin = self._holes.smallest(size)
        if begin is not None:
            whole, resident = self._holes.fill(begin)
            if whole > size:
                self._holes.open(begin + size, whole - size, resident * (whole - size) // whole)
        elif self._end - self._top < size and size >= MAPPED:
            self._mapped[key] = size = -(-size // PAGE) * PAGE
            self.live += size
            return
        else:
            begin = self._top
            self._top += size
            self._touched = max(self._touched, self._top)
            if self._top > self._end:
                self._end = self._top + PAD
        self._used[key] = (begin, size)
        self.live += size

    def give(self, key: int) -> None:
        """Give a block back."""
        if key in self._mapped:
            self.live -= self._mapped.pop(key)
            return
        begin, size = self._used.pop(key)
        self.live -= size
        begin, size, resident = self._holes.merged(begin, size)
        if begin + size == self._top:
            self._top = begin
        else:
            self._holes.open(begin, size, resident)
        if size >= CONSOLIDATED and self._end - self._top >= TRIMMED:
            self._shrink()

    def trim(self) -> None:
        """Give back every page that is free, as malloc_trim(3) does."""
        self._holes.leave()
        self._shrink()

    def _shrink(self) -> None:
        self._touched = self._top
        self._end = self._top + PAD
