"""Every warning, whom it concerns, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import outcome
from bench.report import cautions


def told(*records: dict[str, Any], **manifest: Any) -> dict[str, tuple[str, ...]]:
    found = cautions.of(outcome.rows(records), manifest or None)
    assert all(one.remedy for one in found)
    return {one.what: one.arms for one in found}


def test_nothing_is_said_of_what_is_well(make: Callable[..., dict[str, Any]]) -> None:
    assert told(make("base"), calibration={"made": "today"}) == {}


@pytest.mark.parametrize("stamp", ["quick", "inline", "dirty", "disturbed"])
def test_stamps(make: Callable[..., dict[str, Any]], stamp: str) -> None:
    assert told(make("base", stamps=[stamp])) == {f"stamped {stamp}: not publishable": ("decoding.chat base",)}


def test_memory(make: Callable[..., dict[str, Any]]) -> None:
    record = make("base")
    record["rounds"][2]["memory"] |= {"leak": 3_000_000, "explained": 0.891}
    record["rounds"][3]["memory"] |= {"leak": None, "leak_reason": "too few steps"}
    assert told(record) == {
        "less than 90% of the peak of memory is explained": ("decoding.chat base (89%)",),
        "memory that no component names grows": ("decoding.chat base (3 MB a step)",),
        "whether memory leaks is not known": ("decoding.chat base",),
    }


def test_what_a_workload_notes_of_its_items_is_told_once_for_all_arms(make: Callable[..., dict[str, Any]]) -> None:
    records = [make("base"), make("other")]
    for record in records:
        record["quality"]["notes"] = {"answers that lost their end: 3": "raise max_completion=12"}
    assert told(*records) == {"answers that lost their end: 3": ("decoding.chat base", "decoding.chat other")}


def test_records_without_parts_are_explained_by_their_rest() -> None:
    assert cautions.explained({"peak": 100, "rest": 30}) == pytest.approx(0.7)
    assert cautions.explained({"peak": None, "rest": None}) is None


def test_a_withheld_memory_is_not_told(make: Callable[..., dict[str, Any]]) -> None:
    record = make("wrong")
    record["quality"]["gates"] = [{"name": "g", "passed": False, "detail": "bad"}]
    record["rounds"][0]["memory"] |= {"leak": 3_000_000}
    assert told(record) == {"INVALID": ("decoding.chat wrong (gate g: bad)",)}


def test_a_run_that_was_interrupted_says_so(make: Callable[..., dict[str, Any]], manifest: dict[str, Any]) -> None:
    record = make("base")
    whole = told(record, **{**manifest, "cells": [record["cell"]]})
    found = told(record, **{**manifest, "cells": [record["cell"], "decoding.chat.fast.seed0"]})
    (what,) = found.keys() - whole.keys()
    assert what.startswith("unfinished")
    assert found[what] == ("decoding.chat.fast.seed0",)


def test_the_run_and_its_arms(records: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
    found = told(*records, **manifest)
    assert found.pop("not calibrated: how small a difference this machine can resolve is not known") == ()
    assert found["disturbed bursts were repeated and not counted"] == ("decoding.chat <script>alert('x')</script> (1)",)
    assert found["UNGATED"] == ("decoding.chat unchecked",)
    assert found["failed"][1] == "finetuning.text diverged (loss is not finite)"
    assert found["unsupported"] == ("decoding.chat elsewhere (needs rotary positions)",)
    few = next(arms for what, arms in found.items() if what.startswith("trained under fewer than 5 seeds"))
    assert few[:2] == ("finetuning.text base (seeds 0, 1)", "finetuning.text adapters (seeds 0, 1)")
