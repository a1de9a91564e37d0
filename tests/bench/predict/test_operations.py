"""What an operation asks of a device."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.predict.operations import Work


def test_the_shortest_time_is_the_slower_of_computing_and_reading() -> None:
    work = Work("train", 1, Counter({("bfloat16", 100.0, 1.0): 2, ("float32", 1.0, 30.0): 1}))
    rates = {"bfloat16": 10.0, "float32": 1.0}
    assert work.seconds(rates.__getitem__, 3.0) == pytest.approx(2 * 10.0 + 10.0)
