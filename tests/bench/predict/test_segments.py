"""The caching allocator's sizes, by hand from its source."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_what_holds_no_block_could_go_back() -> None:
    pool = Segments()
    pool.take(1, 64 * MIB)
    pool.give(1)
    pool.take(2, 128 * MIB)
    assert (pool.reserved, pool.least) == (192 * MIB, 128 * MIB)
    pool.take(3, 16 * MIB)  # out of the first segment, of which no part can go back now
    assert (pool.reserved, pool.least) == (192 * MIB, 192 * MIB)


def test_a_segment_is_held_until_its_last_block_is_given_back() -> None:
    pool = Segments()
    for key in (1, 2):
        pool.take(key, 8 * MIB)  # both in one segment of 20 MiB
    pool.give(1)
    pool.take(3, 32 * MIB)
    assert pool.least == 52 * MIB
    pool.give(2)
    pool.take(4, 64 * MIB)
    assert pool.least == 96 * MIB
    assert pool.reserved == 116 * MIB


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40 * MIB)), max_size=60))
def test_the_least_lies_between_what_is_handed_out_and_what_is_reserved(moves: list[tuple[int, int]]) -> None:
    pool = Segments()
    live: set[int] = set()
    most = 0
    for key, size in moves:
        if key in live:
            pool.give(key)
            live.remove(key)
        else:
            pool.take(key, size)
            live.add(key)
        most = max(most, pool.held)
        assert most <= pool.least <= pool.reserved
