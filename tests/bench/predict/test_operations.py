"""What an operation asks of a device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.predict import operations
from bench.predict.heap import Heap
from bench.predict.operations import Work
from bench.predict.simulation import Tracker


def test_the_shortest_time_is_the_slower_of_computing_and_reading() -> None:
    work = Work("train", 1, Counter({("bfloat16", 100.0, 1.0): 2, ("float32", 1.0, 30.0): 1}))
    rates = {"bfloat16": 10.0, "float32": 1.0}
    assert work.seconds(rates.__getitem__, 3.0) == pytest.approx(2 * 10.0 + 10.0)


def test_a_batched_product_copies_what_repeats_one_matrix_in_bfloat16_alone() -> None:
    rows, matrix = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((8, 3, 5), (5, 7)))
    repeated = matrix.expand(8, 5, 7)
    bmm = torch.ops.aten.bmm.default
    assert operations.scratch(bmm, (rows, repeated)) == 8 * matrix.nbytes
    assert operations.scratch(bmm, (rows, repeated.clone())) == 0
    assert operations.scratch(bmm, (rows.float(), repeated.float())) == 0
    assert operations.scratch(torch.ops.aten.mul.Tensor, (repeated, repeated)) == 0


@pytest.mark.parametrize("copies", [True, False])
def test_what_an_operation_takes_inside_itself_is_part_of_the_peak(copies: bool) -> None:
    heap = Heap()
    tracker = Tracker(heap, copies)
    with FakeTensorMode(), tracker:
        rows, matrix = torch.zeros(8, 30, 50, dtype=torch.bfloat16), torch.zeros(50, 70, dtype=torch.bfloat16)
        before = heap.held
        rows @ matrix.expand(8, 50, 70)
    inside = 8 * 50 * 70 * 2 if copies else 0
    assert tracker.operators == inside
    assert tracker.peak - before >= inside + 8 * 30 * 70 * 2
    assert tracker.peak - before < inside + 8 * 30 * 70 * 2 + 1000
