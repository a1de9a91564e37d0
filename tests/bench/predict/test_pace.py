"""A step's time follows from the limits and from the other cells, never from its own measurement."""

from __future__ import annotations

from typing import Any

import pytest

from bench.predict.check import Checked
from bench.predict.pace import measured, paces
from bench.report import predictions


def cell(name: str, least: float, seconds: float, device: str = "d", kind: str = "train") -> Checked:
    steps: dict[str, Any] = {"least": {kind: least}, "measured_steps": {kind: seconds}}
    return Checked("x/1", name, "finetuning", "m", device, "cpu", 1200, 100, 1000, limits="measured", **steps)


def test_how_far_the_others_stay_behind_the_limits_is_taken_over() -> None:
    found = paces([cell("a", 1.0, 2.0), cell("b", 2.0, 6.0), cell("c", 1.0, 5.0)])
    assert [one.predicted for one in found] == pytest.approx([4.0, 7.0, 2.5])
    assert found[0].error == pytest.approx(1.0)


def test_a_measurement_does_not_move_its_own_prediction() -> None:
    one, other = (paces([cell("a", 1.0, seconds), cell("b", 1.0, 3.0)])[0] for seconds in (2.0, 50.0))
    assert one.predicted == other.predicted == 3.0


def test_another_device_and_another_kind_of_step_say_nothing() -> None:
    found = paces([cell("a", 1.0, 2.0), cell("b", 1.0, 3.0, device="e"), cell("c", 1.0, 3.0, kind="prefill")])
    assert [one.predicted for one in found] == [None, None, None]
    assert "no other cell to calibrate with" in predictions.as_markdown([cell("a", 1.0, 2.0)])


def test_bursts_that_do_not_count_are_left_out() -> None:
    def burst(seconds: list[float], used: bool = True) -> dict[str, Any]:
        return {"used": used, "samples": {"kind": ["prefill", "decode", "decode"], "seconds": seconds}}

    rounds = [{"bursts": [burst([4.0, 1.0, 2.0]), burst([90.0, 90.0, 90.0], used=False)]}]
    assert measured({"rounds": rounds}) == {"prefill": 4.0, "decode": 1.5}


def test_the_page_shows_times_beside_their_error() -> None:
    page = predictions.as_markdown([cell("a", 1.0, 2.0), cell("b", 2.0, 6.0)])
    assert "| a | train | 1 s | 3 s | 2 s | +50 % |" in page
    assert "time: 2 kinds of step predicted, half of them within 42 %, largest error +50 % (a train)" in page
    assert "limits of d: measured" in page
