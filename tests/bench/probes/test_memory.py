from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from bench.probes import memory, resident
from bench.probes.memory import Gauge, MemoryProbe, bytes_held, nvml_process, reset_peak
from bench.probes.resident import process_status
from bench.probes.tensors import StorageWatch
from bench.technique import Phase, Prepared, Step, unmarked

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def whole_heap() -> Iterator[None]:
    """Fill the holes that other tests left in the heap: a large block in one is not given back when it is freed."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_size_t
    libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
    size, plugs = 40 * MIB, []  # mapped from the kernel where no hole fits
    while (block := libc.malloc(size)) < libc.sbrk(0):
        ctypes.memset(block, 1, size)
        plugs.append(block)
    plugs.append(block)
    yield
    for block in plugs:
        libc.free(block)


def mebibytes(count: int) -> Tensor:
    return torch.ones(count * MIB, dtype=torch.uint8)


def followed(prepared: Prepared, step: Callable[[Phase], None], steps: int = 1) -> dict[str, Any]:
    """A burst whose every step is `step`; the process as it is now is its runtime."""
    with StorageWatch("cpu", Gauge("cpu")):
        torch.ones(1)  # a process' first mode imports 70 MB
    probe = MemoryProbe(prepared, "cpu", resident.at_rest())

    def burst() -> Iterator[Step]:
        for _ in range(steps):
            step(probe.phase)
            yield Step("train", 1)

    probe.follow(burst())
    return probe.read()


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
    big = mebibytes(200)
    del big
    resident.at_rest()  # no garbage of other tests goes in between
    assert reset_peak("cpu") == ""
    before = process_status()["peak"]
    held = mebibytes(64)
    assert process_status()["peak"] - before == pytest.approx(64 * MIB, rel=0.05)
    del held


def test_what_lives_inside_a_phase_is_seen() -> None:
    prepared = Prepared(nn.Linear(2, 2), state=[])
    prepared.components["gradients"] = lambda: prepared.state

    def step(phase: Phase) -> None:
        with phase("backward"):
            prepared.state = [mebibytes(1)]
        prepared.state = []

    report = followed(prepared, step)
    assert report["largest"] == {"weights": 24, "gradients": MIB}
    assert report["components"] == {"weights": 24, "gradients": MIB}
    assert report["named"] == MIB + 24


LAYERS, WIDTH, ROWS = 4, 64, 3 << 16
ACTIVATION = ROWS * WIDTH * 4
"""48 MiB: glibc maps and unmaps blocks above 32 MiB, so that none is kept."""


def network() -> tuple[Prepared, Callable[[Phase], None]]:
    """A model of small weights and large activations, and one step of its training."""
    model = nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    rows = torch.ones(ROWS, WIDTH)
    prepared = Prepared(model)
    prepared.components["gradients"] = lambda: [p.grad for p in model.parameters() if p.grad is not None]

    def step(phase: Phase) -> None:
        with phase("forward"):
            loss = model(rows).sum()
        with phase("backward"):
            loss.backward()

    step(unmarked)  # what its libraries make once is made
    model.zero_grad()
    return prepared, step


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return followed(*network())


def test_the_parts_explain_a_training_step(trained: dict[str, Any]) -> None:
    report = trained
    assert report["explained"] >= 0.9
    # a layer keeps its ReLU's output; the loss's gradient and two of the layers' live besides
    assert LAYERS * ACTIVATION <= report["parts"]["activations"] <= (LAYERS + 3) * ACTIVATION
    assert sum(report["activations"].values()) == report["parts"]["activations"]
    assert report["activations"]["forward"] >= LAYERS * ACTIVATION
    assert report["parts"]["weights"] == LAYERS * (WIDTH + 1) * WIDTH * 4
    grown = report["peak"] - report["parts"]["runtime"]
    assert max(report["rest"], report["excess"]) < 0.1 * grown, "explained without what was there before"


def test_parts_and_rest_are_the_peak(trained: dict[str, Any]) -> None:
    assert sum(trained["parts"].values()) + trained["rest"] - trained["excess"] == trained["peak"]
    assert min(trained["rest"], trained["excess"]) == 0


def test_gradients_have_a_name_at_the_peak() -> None:
    prepared, step = network()

    def twice(phase: Phase) -> None:
        step(phase)
        with phase("optimizer"):
            held = torch.ones(2 * LAYERS, ROWS, WIDTH)
            prepared.model.zero_grad()
            del held

    report = followed(prepared, twice)
    assert report["parts"]["gradients"] == LAYERS * (WIDTH + 1) * WIDTH * 4
    assert report["activations"]["optimizer"] == 2 * LAYERS * ACTIVATION


class EveryTensor(StorageWatch):
    """The rule broken: whatever a component lists counts with the bytes it shows, views of one storage too."""

    def name(self, holdings: Mapping[str, Iterable[Tensor]]) -> None:
        super().name(holdings)
        self.shown = Counter({name: sum(t.nbytes for t in tensors) for name, tensors in holdings.items()})

    def at_peak(self) -> tuple[Counter[str], Counter[str]]:
        return self.shown, super().at_peak()[1]


@pytest.mark.parametrize("watch", [StorageWatch, EveryTensor])
def test_views_count_once_or_the_parts_exceed_the_peak(
    watch: type[StorageWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "StorageWatch", watch)
    prepared = Prepared(nn.Linear(2, 2))
    before = resident.at_rest()
    cache = mebibytes(64)
    prepared.components["kv_cache"] = lambda: [cache, *(cache[layer:] for layer in range(30))]
    probe = MemoryProbe(prepared, "cpu", before)
    probe.follow(iter([Step("decode", 1)]))
    report = probe.read()
    if watch is StorageWatch:
        assert report["parts"]["kv_cache"] == 64 * MIB
        assert 0.9 <= report["explained"] <= 1.01
    else:
        assert report["explained"] > 1.5
        assert report["excess"] > 20 * 64 * MIB
        assert report["rest"] == 0


def planted(take: Callable[[], Any]) -> dict[str, Any]:
    """A burst in which something other than a tensor takes memory."""
    probe = MemoryProbe(Prepared(nn.Linear(2, 2)), "cpu", resident.at_rest())
    held: list[Any] = []

    def burst() -> Iterator[Step]:
        held.append(take())
        yield Step("decode", 1)

    probe.follow(burst())
    return probe.read()


def test_what_libraries_ask_the_c_library_for_is_named() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    places: list[int] = []

    def take() -> None:
        places.append(libc.malloc(ctypes.c_size_t(64 * MIB)))
        ctypes.memset(places[0], 1, 64 * MIB)

    report = planted(take)
    libc.free(ctypes.c_void_p(places[0]))
    assert report["parts"]["libraries"] == pytest.approx(64 * MIB, rel=0.05)
    assert report["rest"] < 0.1 * 64 * MIB


def test_tensors_are_not_named_a_second_time() -> None:
    def take() -> tuple[Tensor, mmap.mmap]:
        mapped = mmap.mmap(-1, 64 * MIB)  # room for what would be named twice
        mapped.write(b"\x01" * 64 * MIB)
        return mebibytes(64), mapped

    report = planted(take)
    assert report["parts"]["activations"] == 64 * MIB
    assert report["parts"]["libraries"] < 0.05 * 64 * MIB


def test_what_nobody_asked_the_c_library_for_stays_unexplained() -> None:
    def take() -> mmap.mmap:
        mapped = mmap.mmap(-1, 64 * MIB)
        mapped.write(b"\x01" * 64 * MIB)
        return mapped

    report = planted(take)
    assert report["rest"] > 0.8 * 64 * MIB, "a part that explains everything would explain nothing"


def test_what_an_operation_takes_inside_itself_is_named() -> None:
    with torch.library._scoped_library("probe_test", "FRAGMENT") as library:
        library.define("scratch(Tensor x) -> Tensor")
        library.impl("scratch", lambda x: x[:4] + mebibytes(96)[:4], "CPU")
        large = mebibytes(16)
        report = followed(Prepared(nn.Linear(2, 2)), lambda phase: torch.ops.probe_test.scratch(large))
    assert report["operator"] == "scratch.default"
    assert report["parts"]["operators"] == pytest.approx(96 * MIB, rel=0.05)


def fragments() -> list[Any]:
    """32 MiB of the heap that are free between blocks in use: of 4000, every other one is given back.

    Garbage of other tests goes first: it would be free as well.
    """
    resident.at_rest()
    blocks = [ctypes.create_string_buffer(16 << 10) for _ in range(4000)]
    return blocks[::2]


FREE = 2000 * (16 << 10)


def test_what_the_c_library_keeps_free_is_named() -> None:
    kept: list[Any] = []
    report = followed(Prepared(nn.Linear(2, 2)), lambda phase: kept.extend(fragments()))
    assert report["parts"]["allocator"] == pytest.approx(FREE, rel=0.2)


def test_what_earlier_bursts_left_free_is_not_this_ones() -> None:
    kept = fragments()
    probe = MemoryProbe(Prepared(nn.Linear(2, 2)), "cpu")
    assert probe.gauge.free < 0.5 * FREE
    assert len(kept) == 2000


def test_weights_in_mapped_files_stand_apart(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(32 * MIB))
    prepared = Prepared(nn.Linear(2, 2))
    mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=32 * MIB, dtype=torch.uint8)
    prepared.components["table"] = lambda: [mapped]
    report = followed(prepared, lambda phase: mapped.sum())
    assert report["mapped"] == {"table": 32 * MIB}
    assert report["components"]["table"] == 32 * MIB, "it is held"
    assert "table" not in report["parts"], "its pages are counted as they are read"
    assert report["parts"]["files"] == pytest.approx(32 * MIB, rel=0.1)


@pytest.mark.parametrize(
    ("peak", "alive", "rose"),
    [
        (1000, 90, False),
        (1040, 90, False),
        (1040, 100, False),
        (1040, 110, True),
        (1060, 90, True),
        (1000.5, 110, False),
    ],
)
def test_a_peak_that_creeps_up_while_no_more_lives_is_the_same_one(
    peak: float, alive: int, rose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"peak": 1000 * MIB, "now": 1000 * MIB, "file": 0}
    monkeypatch.setattr(resident, "process_status", lambda: now)
    gauge = Gauge("cpu")
    assert gauge.rose(100)
    now["peak"] = int(peak * MIB)
    assert gauge.rose(alive) == rose
    assert (gauge.peak, gauge.alive) == ((now["peak"], alive) if rose else (1000 * MIB, 100))


def test_no_mode_is_left_between_the_steps() -> None:
    modes = []
    prepared = Prepared(nn.Linear(2, 2))
    prepared.components["seen"] = lambda: modes.append(_get_current_dispatch_mode()) or []
    followed(prepared, lambda phase: None, steps=3)
    assert modes == [None] * 4


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    def step(phase: Phase) -> None:
        with phase("forward"):
            raise ValueError("planted")

    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError, match="planted"):
        followed(Prepared(nn.Linear(2, 2)), step)
    assert _get_current_dispatch_mode() is None
    assert gc.get_freeze_count() == frozen


def test_an_unknown_peak_has_a_reason_and_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "reset_high_water", lambda: "no such file")
    report = followed(Prepared(nn.Linear(2, 2)), lambda phase: None)
    assert report["reason"] == "no such file"
    for key in ("peak", "process", "parts", "activations", "explained", "rest", "excess"):
        assert report[key] is None, key
    assert report["named"] == 24


def test_the_attention_that_ran() -> None:
    def attend(phase: Phase) -> None:
        query = torch.ones(1, 2, 8, 16)
        nn.functional.scaled_dot_product_attention(query, query, query)

    assert followed(Prepared(nn.Linear(2, 2)), attend)["attention"] == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert followed(Prepared(nn.Linear(2, 2)), lambda phase: None)["attention"] == ["eager"]


@pytest.mark.gpu
def test_cuda_peak() -> None:
    model = nn.Linear(2, 2).cuda()
    probe = MemoryProbe(Prepared(model), "cuda")
    before = probe.read()["peak"]
    held: list[Tensor] = []

    def burst() -> Iterator[Step]:
        held.append(torch.ones(64 * MIB, dtype=torch.uint8, device="cuda"))
        yield Step("train", 1)

    probe.follow(burst())
    report = probe.read()
    assert report["peak"] - before == pytest.approx(64 * MIB, rel=0.05)
    assert report["device"] > report["peak"]
    if report["process"] is None:
        assert report["process_reason"], "a container may hide it, and says so"
    else:
        assert report["process"] > report["peak"]
    assert report["parts"]["activations"] == 64 * MIB
    assert not {"runtime", "files", "allocator"} & set(report["parts"])


@pytest.mark.parametrize(
    ("listed", "found", "reason"),
    [
        ({os.getpid(): 7 * MIB, 1: MIB}, 7 * MIB, ""),
        ({1: MIB}, None, "NVML lists 1 processes and not this one"),
        ({os.getpid(): None}, None, "without its memory"),
        (None, None, "NVML: "),
    ],
)
def test_what_the_driver_says_of_this_process(
    listed: dict[int, int | None] | None, found: int | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the driver: in a container it may list other processes, or none."""
    import pynvml

    def processes(handle: object) -> list[SimpleNamespace]:
        if listed is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed.items()]

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid="0"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
    process, why = nvml_process()
    assert process == found
    assert why.startswith(reason) if reason.startswith("NVML") else reason in why
    assert bool(why) == (process is None)
