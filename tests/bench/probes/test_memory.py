from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.probes.memory import MemoryProbe, bytes_held, process_status, reset_peak
from bench.technique import Prepared

MIB = 1 << 20


def test_a_storage_counts_once() -> None:
    base = torch.zeros(1024, dtype=torch.float32)
    held = bytes_held({"a": [base, base[:10], base.view(32, 32)], "b": [base[5:]], "c": [torch.zeros(3)]})
    assert held == {"a": 4096, "b": 0, "c": 12}


def test_a_view_counts_the_storage_it_keeps_alive() -> None:
    view = torch.zeros(1024, dtype=torch.uint8)[:10]
    assert bytes_held({"a": [view]}) == {"a": 1024}


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert bytes_held(Prepared(model).holdings()) == {"weights": 64}


def test_the_high_water_mark_is_of_this_burst() -> None:
    big = torch.ones(200 * MIB, dtype=torch.uint8)
    del big
    assert reset_peak("cpu") == ""
    before = process_status()["peak"]
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    assert process_status()["peak"] - before == pytest.approx(64 * MIB, rel=0.05)
    del held


def test_what_lives_inside_a_phase_is_seen() -> None:
    prepared = Prepared(nn.Linear(2, 2))
    prepared.state = []
    prepared.components["gradients"] = lambda: prepared.state
    probe = MemoryProbe(prepared, "cpu")
    with probe.phase("backward"):
        prepared.state = [torch.ones(MIB, dtype=torch.uint8)]
    prepared.state = []
    probe.look()
    report = probe.read()
    assert report["largest"]["gradients"] == MIB
    assert report["components"]["gradients"] == MIB
    assert report["named"] == MIB + 24
    assert report["rest"] >= 0


@pytest.mark.gpu
def test_cuda_peak() -> None:
    probe = MemoryProbe(Prepared(nn.Linear(2, 2).cuda()), "cuda")
    before = probe.read()["peak"]
    held = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
    report = probe.read()
    assert report["peak"] - before == pytest.approx(64 * MIB, rel=0.05)
    assert report["process"] > report["peak"]
    del held
