"""What torch's caching allocator reserves of a GPU for the blocks that it hands out, replayed.

Blocks are cut from segments, out of the smallest free place that is large enough; small ones have segments of their
own. Segments go back only when the device has no more to give: then all that hold no block, before torch gives up. So
there are two figures: what is reserved where there is room, and with how much it would do.

Not in it: what a kernel asks for inside itself, as cuBLAS its workspace, what the driver keeps for the process, and
that segments which went back are cut anew, in other sizes.

Source: torch 2.13, c10/cuda/CUDACachingAllocator.cpp, with its default settings (no `expandable_segments`).
"""

from __future__ import annotations

import bisect

from bench.predict.holes import Holes

ROUNDED = 512
"""Every block is a multiple of it (kMinBlockSize) [B]."""
SMALL = 2**20
"""Blocks up to it come from small segments (kSmallSize) [B]."""
SMALL_SEGMENT, LARGE_SEGMENT = 2 * 2**20, 20 * 2**20
"""How much is reserved at once for small blocks, and for large ones (kSmallBuffer, kLargeBuffer) [B]."""
LARGE = 10 * 2**20
"""A block from this size on has a segment of its own, rounded to 2 MiB (kMinLargeAlloc, kRoundLarge) [B]."""


class Segments:
    """What a process has reserved, and what of it is handed out."""

    idle = 0
    """A peak on CUDA is what is handed out: what is reserved beside it is known apart."""

    def __init__(self) -> None:
        self.held = 0
        """Handed out: `torch.cuda.memory_allocated` [B]."""
        self.reserved = 0
        """`torch.cuda.max_memory_reserved`, where there is room [B]."""
        self.least = 0
        """The most, at one time, in segments that hold a block: these cannot go back [B]."""
        self._begins: list[int] = []
        self._sizes: list[int] = []
        """Of each segment, in the order of their places [B]."""
        self._blocks: list[int] = []
        """How many each segment holds."""
        self._occupied = 0
        self._used: dict[int, tuple[int, int, Holes]] = {}
        self._small, self._large = Holes(), Holes()
        self._next = 0

    def take(self, key: int, size: int) -> None:
        """Ask for a block of `size` bytes, named by `key` until it is given back."""
        size = max(-(-size // ROUNDED), 1) * ROUNDED
        pool = self._small if size <= SMALL else self._large
        begin = pool.smallest(size)
        if begin is None:
            begin = self._reserve(size, pool)
        whole, _ = pool.fill(begin)
        if whole - size >= ROUNDED if pool is self._small else whole - size > SMALL:
            pool.open(begin + size, whole - size, 0)
            whole = size
        self._used[key] = (begin, whole, pool)
        self.held += whole
        self._count(begin, 1)
        self.least = max(self.least, self._occupied)

    def give(self, key: int) -> None:
        """Give a block back: it stays reserved."""
        begin, size, pool = self._used.pop(key)
        self.held -= size
        self._count(begin, -1)
        begin, size, _ = pool.merged(begin, size)
        pool.open(begin, size, 0)

    def trim(self) -> None:
        """Nothing: torch keeps what it has reserved."""

    def _reserve(self, size: int, pool: Holes) -> int:
        whole = SMALL_SEGMENT if pool is self._small else LARGE_SEGMENT if size < LARGE else -(-size // 2**21) * 2**21
        begin = self._next
        self._next += whole + ROUNDED  # segments never merge
        self.reserved += whole
        self._begins.append(begin)
        self._sizes.append(whole)
        self._blocks.append(0)
        pool.open(begin, whole, 0)
        return begin

    def _count(self, begin: int, change: int) -> None:
        """A block at this place came or went."""
        segment = bisect.bisect_right(self._begins, begin) - 1
        before = self._blocks[segment]
        self._blocks[segment] += change
        self._occupied += self._sizes[segment] * (bool(before + change) - bool(before))
