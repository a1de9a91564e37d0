"""What is searched for is found, and a prediction adds up."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import registry
from bench.errors import Unsupported, UsageError
from bench.outlook import size
from bench.predict.devices import LISTED, Device, find, this_cpu
from bench.predict.prediction import Calibration, Setting, _search, largest, predict
from bench.predict.weightless import sources
from bench.report import predictions

registry.load_plugins()
DEVICE = Device("a device", "cpu", 10**9, 1e9, {"float32": 1e12}, "made up")


def setting(device: Device = DEVICE, **workload: Any) -> Setting:
    asked = {"batch_size": 1, "sequence": 16, "burst_steps": 1, "items": 2, **workload}
    return Setting(
        "lora",
        registry.techniques["lora"].cls(rank=2),
        registry.workloads["embedded_text"].cls(**asked),
        "tiny:llama",
        device,
        "float32",
    )


def of(needed: Callable[[int], float], tried: list[int]) -> Any:
    def at(value: int) -> Any:
        tried.append(value)
        return SimpleNamespace(needed=needed(value), parts={}, flops={"train": value})

    return at


@pytest.mark.parametrize("needed", [lambda n: 100 + 7 * n, lambda n: 50 + n**2 / 9, lambda n: 10 * (n // 4) + n])
@pytest.mark.parametrize("start", [1, 4, 64, 900])
@pytest.mark.parametrize("budget", [150, 1000, 5003])
def test_the_largest_that_fits_is_found_in_a_few_tries(needed: Callable[[int], float], start: int, budget: int) -> None:
    tried: list[int] = []
    fit = _search(of(needed, tried), "rows", start, budget)
    assert isinstance(fit.value, int)
    assert needed(fit.value) <= budget < needed(fit.value + 1)
    assert str(fit.value + 1) in fit.beyond
    assert fit.largest
    assert len(tried) <= 24
    assert len(set(tried)) == len(tried)


def test_nothing_fits_where_the_smallest_does_not() -> None:
    fit = _search(of(lambda n: 100 + n, []), "rows", 8, 100)
    assert fit.value is None
    assert fit.prediction is None
    assert "rows=1 " in fit.beyond


@pytest.mark.parametrize("start", [1, 900])
def test_a_search_that_runs_out_of_tries_does_not_say_largest(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def needed(size: int) -> float:
        return 1 if size <= 1000 else 10**9

    monkeypatch.setattr("bench.predict.prediction.GUESSES", 6)
    tried: list[int] = []
    fit = _search(of(needed, tried), "rows", start, 100)
    assert len(tried) == 6
    assert fit.value == max(size for size in tried if needed(size) <= 100)
    assert not fit.largest
    assert "ended after 6 sizes" in fit.beyond
    console = Console(width=200, record=True, file=io.StringIO())
    predictions.draw_fit(fit, 100, console)
    said = console.export_text()
    assert "largest rows" not in said
    assert "perhaps not the largest" in said


def test_a_search_ends_where_the_workload_ends() -> None:
    def at(value: int) -> Any:
        if value > 40:
            raise Unsupported("the context ends")
        return SimpleNamespace(needed=value, parts={}, flops={})

    fit = _search(at, "sequence", 16, 10**6)
    assert fit.value == 40
    assert fit.beyond == "the context ends"


@pytest.mark.parametrize("budget", [10**9, 1])
def test_a_field_that_changes_nothing_is_refused(budget: int) -> None:
    with pytest.raises(UsageError, match=r"largest 'items'.*do not depend on it; name model or one of .*batch_size"):
        largest(setting(), "items", budget)


def test_more_rows_that_fit_beside_a_peak_without_them_are_still_searched_for() -> None:
    def at(value: int) -> Any:
        return SimpleNamespace(needed=max(100, 3 * value), parts={}, flops={"train": value})

    assert _search(at, "rows", 1, 120).value == 40


def test_a_field_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match=r"name model or .*batch_size"):
        largest(setting(), "nothing", 10**9)


def test_the_parts_are_the_peak_and_the_unseen_is_a_share_of_the_seen() -> None:
    plain = predict(setting())
    assert plain.peak == sum(plain.parts.values()) == plain.seen
    assert plain.parts["runtime"] == plain.parts["unseen"] == 0
    told = predict(setting(), Calibration(runtime=1000, unseen=0.1, records=3))
    assert told.peak == plain.peak + 1000 + round(0.1 * plain.seen)
    assert told.parts["weights"] == plain.parts["weights"]


def test_time_is_bound_by_the_slower_limit() -> None:
    slow_reading = predict(setting(Device("d", "cpu", 1, 1e6, {"float32": 1e18}, "")))
    slow_computing = predict(setting(Device("d", "cpu", 1, 1e18, {"float32": 1e6}, "")))
    assert slow_computing.seconds["train"] == pytest.approx(slow_computing.flops["train"] / 1e6, rel=1e-3)
    assert slow_reading.seconds["train"] != pytest.approx(slow_computing.seconds["train"], rel=0.01)


def test_on_a_gpu_what_is_reserved_must_be_there() -> None:
    found = predict(setting(LISTED["h100"]))
    assert found.reserved >= found.needed > found.peak
    assert found.needed % (2 * 2**20) == found.reserved % (2 * 2**20) == 0
    assert "runtime" not in found.parts


@pytest.mark.parametrize(("text", "wanted"), [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 GB", 1.5e9), ("7", 7)])
def test_sizes_are_read(text: str, wanted: float) -> None:
    assert size(text) == wanted


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "24XB", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size of memory"):
        size(text)


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'h200'"):
        find("h20")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(monkeypatch: pytest.MonkeyPatch, name: str, key: str | None) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(total_memory=12345))
    if key is None:
        with pytest.raises(UsageError, match="its limits are not listed"):
            find("cuda")
    else:
        assert find("cuda") == replace(LISTED[key], memory=12345)


def test_a_cpu_is_measured_with_the_threads_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.predict.devices.MEASURED_FOR", 1e-6)
    before = torch.get_num_threads()
    for threads in (before + 1, None):
        assert f" {threads or before} threads" in this_cpu("float32", threads).source
    assert torch.get_num_threads() == before


def test_no_large_network_is_made_for_a_workloads_data() -> None:
    with pytest.raises(Unsupported, match="has the model write or score"):
        sources("synthetic:llama-7b", {}, "bfloat16").target.model()
