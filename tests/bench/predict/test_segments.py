"""The caching allocator's sizes, by hand from its source."""

from __future__ import annotations

import pytest

from bench.predict.segments import Segments

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "held", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # what would be left over is too small to be split off
        (13 * MIB + 1, 14 * MIB, 14 * MIB),
    ],
)
def test_a_first_block(size: int, held: int, reserved: int) -> None:
    pool = Segments()
    pool.take(1, size)
    assert (pool.held, pool.reserved) == (held, reserved)


def test_small_and_large_blocks_share_no_segment() -> None:
    pool = Segments()
    pool.take(1, 2 * MIB)
    pool.take(2, 1024)
    assert pool.reserved == 22 * MIB
    pool.take(3, 10 * MIB - 512)
    assert pool.reserved == 22 * MIB


def test_what_is_given_back_stays_reserved_and_is_used_again() -> None:
    pool = Segments()
    pool.take(1, 64 * MIB)
    pool.give(1)
    assert (pool.held, pool.reserved) == (0, 64 * MIB)
    for key in range(8):
        pool.take(key, 8 * MIB)
    assert (pool.held, pool.reserved) == (64 * MIB, 64 * MIB)
    for key in (0, 2, 4, 6):
        pool.give(key)
    pool.take(9, 16 * MIB)  # four holes of 8 are none of 16
    assert pool.reserved == 80 * MIB
    pool.give(1)
    pool.take(10, 24 * MIB)
    assert pool.reserved == 80 * MIB


def test_holes_of_two_segments_are_not_one() -> None:
    pool = Segments()
    pool.take(1, 32 * MIB)
    pool.take(2, 32 * MIB)
    pool.give(1)
    pool.give(2)
    pool.take(3, 64 * MIB)
    assert pool.reserved == 128 * MIB
