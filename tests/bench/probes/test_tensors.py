from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from bench.probes.tensors import StorageWatch

KIB = 1 << 10


class Highest:
    """A peak that the test follows itself: whatever lives more than before."""

    def __init__(self) -> None:
        self.watch = StorageWatch("cpu", self)
        self.peak = 0

    def rose(self, alive: int) -> bool:
        higher, self.peak = alive > self.peak, max(self.peak, alive)
        return higher


@pytest.fixture
def peak() -> Highest:
    return Highest()


def block(count: int = 1) -> Tensor:
    return torch.zeros(count * KIB, dtype=torch.uint8)


def test_a_storage_lives_until_its_last_view_goes(peak: Highest) -> None:
    with peak.watch as watch:
        base = block()
        view = base.view(2, -1)[1]
        assert watch.total == KIB
    del base
    assert watch.total == KIB
    del view
    assert watch.total == 0, "a release is seen outside of the mode too"


def test_a_resized_storage_has_its_new_size(peak: Highest) -> None:
    with peak.watch as watch:
        base = block()
        base.resize_(4 * KIB)
        assert watch.total == 4 * KIB


def test_what_lived_at_the_peak(peak: Highest) -> None:
    watch = peak.watch
    weight, late = block(8), None
    watch.name({"weights": [weight, weight[5:]]})
    watch.phase = "forward"
    with watch:
        saved = block(3)
        for _ in range(2):
            gone = block(2)
            del gone
        cache = block(4)  # 8 + 3 + 4 is the peak
        watch.name({"kv_cache": [cache]})
        del saved
        late = block(1)
    named, unnamed = watch.at_peak()
    assert named == {"weights": 8 * KIB, "kv_cache": 4 * KIB}
    assert unnamed == {"forward": 3 * KIB}, "released since, and born since"
    assert watch.unnamed() == late.nbytes
    assert watch.operator == "zeros.default"


class Counting:
    """A peak of 100 KiB, and how often it was asked for."""

    peak = 100 * KIB
    asked = 0

    def rose(self, alive: int) -> bool:
        self.asked += 1
        return False


def test_the_device_is_asked_behind_large_operations() -> None:
    gauge = Counting()
    small, large = torch.zeros(4), torch.zeros(KIB)
    with StorageWatch("cpu", gauge) as watch:
        watch.name({"weights": [small, large]})
        watch.ask()
        gauge.asked = 0
        block(2)
        block(2)
        assert gauge.asked == 2, "a large result"
        small.add_(1)
        assert gauge.asked == 2
        large.sum()
        assert gauge.asked == 3, "a large argument"
        torch._foreach_norm([large])
    assert gauge.asked == 4, "a list of arguments"


def test_the_device_is_asked_when_many_small_ones_add_up() -> None:
    gauge = Counting()
    with StorageWatch("cpu", gauge):
        kept = [torch.zeros(KIB // 4, dtype=torch.uint8) for _ in range(16)]
    assert gauge.asked == 3, "behind every fifth"
    assert len(kept) == 16


def test_the_first_name_stays(peak: Highest) -> None:
    tensor = block()
    peak.watch.name({"weights": [tensor]})
    peak.watch.name({"adapters": [tensor]})
    peak.watch.ask()
    assert peak.watch.at_peak()[0] == {"weights": KIB}


def test_a_backward_pass_is_seen(peak: Highest) -> None:
    x = torch.zeros(16, 16, requires_grad=True)
    with peak.watch as watch:
        y = x.exp()
        watch.phase = "backward"
        y.sum().backward()
    del y
    assert watch.total == x.nbytes, "the gradient"
    assert watch.at_peak()[1]["backward"] >= x.nbytes


def test_inside_composite_operations_of_inference_mode(peak: Highest) -> None:
    weight, rows = torch.ones(7, 5), torch.ones(3, 4, 5)
    with torch.inference_mode(), peak.watch as watch:
        out = linear(rows.transpose(0, 1), weight)
    assert out.shape == (4, 3, 7)
    assert watch.at_peak()[1][""] > out.nbytes, "the rows were made contiguous first"


def test_a_product_with_weights_runs_as_it_does_unwatched(peak: Highest) -> None:
    weight, rows = nn.Parameter(torch.ones(700, 50)), torch.ones(1, 8, 50)
    with torch.inference_mode(), peak.watch as watch:
        linear(rows[:, -2:], weight)
    assert watch.operator == "mm.default", "a batched product copies the weight"


@pytest.mark.parametrize("inference", [False, True])
def test_the_attention_operator_that_ran(peak: Highest, inference: bool) -> None:
    query = torch.ones(1, 2, 8, 16)
    with torch.inference_mode(inference), peak.watch as watch:
        scaled_dot_product_attention(query, query, query)
    assert watch.attention == {"_scaled_dot_product_flash_attention_for_cpu"}


def test_no_attention_operator(peak: Highest) -> None:
    with peak.watch as watch:
        nn.Linear(3, 3)(torch.ones(2, 3)).softmax(-1)
    assert watch.attention == set()


def test_other_devices_are_not_counted(peak: Highest) -> None:
    with StorageWatch("cuda:0", peak) as watch:
        here = block()
    assert here.nbytes == KIB
    assert watch.total == 0


def test_what_is_left_out_never_counts(peak: Highest) -> None:
    base = block()
    peak.watch.leave_out([base])
    with peak.watch as watch:
        base.add_(1)
    watch.name({"weights": [base]})
    assert watch.total == 0
