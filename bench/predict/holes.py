"""Free places between blocks of memory, ordered by size: what both allocators search."""

from __future__ import annotations

import bisect


class Holes:
    """Disjoint free places; no two of them touch."""

    def __init__(self) -> None:
        self.resident = 0
        """Of all of them, how much the process still has from the kernel [B]."""
        self._sizes: list[tuple[int, int]] = []
        """(size, begin), in order."""
        self._at: dict[int, tuple[int, int]] = {}
        """Begin -> size, and how much of it is resident."""
        self._begins: dict[int, int] = {}
        """End -> begin."""

    def smallest(self, size: int) -> int | None:
        """Where the smallest hole of at least `size` bytes begins; None if all are smaller."""
        place = bisect.bisect_left(self._sizes, (size, 0))
        return self._sizes[place][1] if place < len(self._sizes) else None

    def open(self, begin: int, size: int, resident: int) -> None:
        """Make a hole that touches no other."""
        self._at[begin] = (size, resident)
        self._begins[begin + size] = begin
        self.resident += resident
        bisect.insort(self._sizes, (size, begin))

    def fill(self, begin: int) -> tuple[int, int]:
        """Take the hole that begins here away; its size, and how much of it was resident."""
        size, resident = self._at.pop(begin)
        del self._begins[begin + size]
        self.resident -= resident
        del self._sizes[bisect.bisect_left(self._sizes, (size, begin))]
        return size, resident

    def merged(self, begin: int, size: int) -> tuple[int, int, int]:
        """Take away what touches a block that becomes free: begin, size and resident bytes of all of it together."""
        resident = size
        if begin + size in self._at:
            more, there = self.fill(begin + size)
            size, resident = size + more, resident + there
        if begin in self._begins:
            begin = self._begins[begin]
            more, there = self.fill(begin)
            size, resident = size + more, resident + there
        return begin, size, resident

    def leave(self) -> None:
        """Give the pages of all holes back to the kernel; the holes stay."""
        self._at = {begin: (size, 0) for begin, (size, _) in self._at.items()}
        self.resident = 0
