"""The numbers behind every figure, and that nothing withheld is among them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from bench import outcome
from bench.report import figures


def drawings(records: list[dict[str, Any]]) -> dict[str, figures.Drawing]:
    return {one.name: one for comparison, rows in outcome.rows(records).items() for one in figures.of(comparison, rows)}


def test_a_scatter_holds_changes_with_their_intervals(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings([make("base"), make("fast", tpot=0.05)])["decoding.chat.quality-latency"]
    base, fast = found.lines
    assert (base["tpot"], base["output_nll"], base["tpot_low"]) == (1.0, 0.0, None)
    assert fast["tpot_low"] < fast["tpot"] < fast["tpot_high"] < 0.6
    assert fast["output_nll_low"] < fast["output_nll"] < fast["output_nll_high"]
    assert found.x == "tpot, ratio to base, lower is better"
    assert found.y == "output_nll [nat/token], difference from base, lower is better"
    assert "some-model (1.5B parameters) on Test CPU" in found.subject
    assert [row["arm"] for row in csv.DictReader(io.StringIO(found.csv))] == ["base", "fast"]


def test_the_front_holds_whom_no_other_arm_beats(make: Callable[..., dict[str, Any]]) -> None:
    arms = [make("base", nll=2.0), make("fast", tpot=0.05, nll=2.5), make("bad", tpot=0.2, nll=3.0)]
    found = drawings(arms)["decoding.chat.quality-latency"]
    assert {line["arm"]: line["on_front"] for line in found.lines} == {"base": True, "fast": True, "bad": False}


def test_what_a_figure_depends_on_stands_below_it(make: Callable[..., dict[str, Any]]) -> None:
    arms = [make("base"), make("a", tpot=0.05), make("b", tpot=0.06), make("c", tpot=0.07)]
    for record, label in zip(arms[1:], ("query-aware", "query-agnostic", "query-aware"), strict=True):
        record["technique"] = {**record["technique"], "labels": [label], "registered": record["arm"]}
    caption = drawings(arms)["decoding.chat.quality-latency"].note
    assert caption.endswith("Query-aware: a, c. Query-agnostic: b.")
    assert "uery" not in drawings([make("base"), make("fast", tpot=0.05)])["decoding.chat.quality-latency"].note


def test_the_front_knows_which_way_is_better(make: Callable[..., dict[str, Any]]) -> None:
    primary = {"quality": "token_agreement", "latency": "tpot", "memory": "peak_memory"}
    arms = [make("base", primary=primary), make("fast", tpot=0.05, primary=primary)]
    for record, share in zip(arms, (0.9, 0.5), strict=True):
        record["quality"]["metrics"] = {"token_agreement": [share] * 20}
    assert all(line["on_front"] for line in drawings(arms)["decoding.chat.quality-latency"].lines)


def test_a_peak_is_made_of_its_parts_and_what_they_leave(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings([make("base", peak=1e9)])["decoding.chat.memory"]
    assert [line["component"] for line in found.lines] == ["runtime", "weights", "activations", "not explained"]
    assert sum(line["bytes"] for line in found.lines) == found.lines[0]["peak_bytes"]
    assert "base: 1 GB, of which runtime 300 MB" in found.words


def test_a_record_without_parts_shows_its_components(make: Callable[..., dict[str, Any]]) -> None:
    record = make("base")
    for part in record["rounds"]:
        part["memory"] = {
            "peak": 100,
            "reserved": None,
            "named": 40,
            "largest": {},
            "components": {"weights": 40, "optimizer": 0},
            "runtime": 50,
            "rest": 10,
        }
    lines = drawings([record])["decoding.chat.memory"].lines
    assert {line["component"]: line["bytes"] for line in lines} == {"runtime": 50, "weights": 40, "not explained": 10}


def test_who_is_not_drawn_is_named(records: list[dict[str, Any]]) -> None:
    found = drawings(records)
    named = ("wrong: INVALID", "broken: failed", "elsewhere: unsupported")
    for name in ("quality-memory", "quality-latency", "memory"):
        drawing = found[f"decoding.chat.{name}"]
        assert drawing.left_out == named
        assert not {"wrong", "broken", "elsewhere"} & {line["arm"] for line in drawing.lines}
    random = found["decoding.shapes.quality-latency"]
    assert random.missing
    assert random.left_out == tuple(f"{arm}: not applicable: random weights" for arm in ("base", "fast"))


@pytest.mark.parametrize("reason", ["", "no /proc here"])
def test_memory_that_was_not_measured_says_so(make: Callable[..., dict[str, Any]], reason: str) -> None:
    record = make("base")
    for part in record["rounds"]:
        part["memory"] = {"peak": None, "reserved": None, "named": 1, "largest": {}, "reason": reason}
    found = drawings([record])["decoding.chat.memory"]
    assert found.missing == "no arm's memory was measured"
    assert found.left_out == (f"base: not measured{', no /proc here' if reason else ''}",)
