"""Which runs may be compared, and what is said of their arms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fabricated import DEVICE, ENVIRONMENT, pair, record, run

from bench.comparison import Change, Contrast, contrast, moved_baselines
from bench.errors import UsageError


def of(found: Contrast, metric: str, arm: str = "arm") -> Change:
    (change,) = [one for one in found.changes if one.metric.name == metric and one.arm == arm]
    return change


def verdict(found: Contrast, metric: str, arm: str = "arm") -> str | None:
    judgement = of(found, metric, arm).judgement
    return judgement.verdict if judgement else None


def test_verdicts_are_those_of_a_run(tmp_path: Path) -> None:
    first = [record("base"), record("arm")]
    second = [record("base", salt="b"), record("arm", seconds=0.8, nll=3.2, peak=1.0e9, salt="b")]
    found = contrast(*pair(tmp_path, first, second))
    assert verdict(found, "time_per_step") == "BETTER"
    assert verdict(found, "nll") == "WORSE"
    assert verdict(found, "peak_memory") == "SAME"
    assert verdict(found, "time_per_step", "base") == "SAME"
    estimate = of(found, "time_per_step").estimate
    assert estimate is not None
    assert estimate.low < 0.8 < estimate.high
    assert of(found, "time_per_step").before == pytest.approx(1.0, rel=0.01)


def test_what_is_not_primary_has_an_interval_and_no_verdict(tmp_path: Path) -> None:
    found = contrast(*pair(tmp_path, [record("base")], [record("base", seconds=0.5, salt="b")]))
    change = of(found, "throughput", "base")
    assert not change.primary
    assert change.estimate is not None
    assert change.estimate.change == pytest.approx(2, rel=0.01)
    assert change.judgement is None


def test_verdicts_are_corrected_over_all_arms(tmp_path: Path) -> None:
    """A change that one arm alone could claim is not claimed among twenty."""

    def arms(salt: str, level: float, count: int) -> list[dict[str, Any]]:
        made = [record(f"arm{number}", salt=salt, rounds=5) for number in range(count)]
        for part, noise in zip(made[0]["rounds"], (-0.008, -0.003, 0.0, 0.003, 0.008), strict=True):
            part["memory"]["peak"] = 1e9 * level * (1 + noise)
        return made

    alone = contrast(*pair(tmp_path / "one", arms("", 1.0, 1), arms("b", 1.0125, 1)))
    among = contrast(*pair(tmp_path / "many", arms("", 1.0, 20), arms("b", 1.0125, 20)))
    assert of(alone, "peak_memory", "arm0").estimate == of(among, "peak_memory", "arm0").estimate
    assert verdict(alone, "peak_memory", "arm0") == "WORSE"
    assert verdict(among, "peak_memory", "arm0") == "INCONCLUSIVE"


@pytest.mark.parametrize("broken", ["first", "second"])
def test_an_invalid_arm_has_no_speed_and_no_memory(tmp_path: Path, broken: str) -> None:
    first, second = (record("arm", gate=broken != which, nll=3.0) for which in ("first", "second"))
    found = contrast(*pair(tmp_path, [first], [second]))
    for name in ("time_per_step", "throughput", "peak_memory", "held_memory"):
        change = of(found, name)
        assert (change.estimate, change.before, change.judgement) == (None, None, None)
        assert change.missing == f"withheld: invalid in the {broken} run"
    assert of(found, "nll").estimate is not None
    assert found.pairs[0].broke == (broken == "second")


def test_an_unfinished_arm_has_no_figures(tmp_path: Path) -> None:
    found = contrast(*pair(tmp_path, [record("arm")], [record("arm", status="timeout", reason="too slow")]))
    assert of(found, "time_per_step").missing == "timeout in the second run"
    assert of(found, "time_per_step").estimate is None
    assert found.pairs[0].lost


def test_a_random_model_has_no_quality(tmp_path: Path) -> None:
    model = {"sha256": "m", "random": True}
    found = contrast(*pair(tmp_path, [record("arm", model=model)], [record("arm", model=model)]))
    assert of(found, "nll").missing == "not applicable: random weights"


def test_a_metric_of_one_run_alone_is_not_measured_in_the_other(tmp_path: Path) -> None:
    second = record("arm")
    for part in second["rounds"]:
        part["memory"] = None
    found = contrast(*pair(tmp_path, [record("arm")], [second]))
    assert of(found, "peak_memory").missing == "not measured in the second run"
    assert of(found, "peak_memory").before is None


def test_cells_of_one_run_alone_are_listed(tmp_path: Path) -> None:
    found = contrast(*pair(tmp_path, [record("base"), record("old")], [record("base"), record("new")]))
    assert found.only == (("c.old.seed0", "first"), ("c.new.seed0", "second"))
    assert {change.arm for change in found.changes} == {"base"}


def test_seeds_of_one_run_alone_do_not_enter_its_figures(tmp_path: Path) -> None:
    other = record("arm", nll=9.0, seed=1, cell="c.arm.seed1")
    found = contrast(*pair(tmp_path, [record("arm"), other], [record("arm")]))
    assert of(found, "nll").before == pytest.approx(3.0, abs=0.01)
    assert found.only == (("c.arm.seed1", "first"),)


def test_a_trained_models_quality_is_said_to_be_that_of_few_models(tmp_path: Path) -> None:
    technique = {"name": "arm", "parameters": {}, "trains": True}
    found = contrast(*pair(tmp_path, [record("arm", technique=technique)], [record("arm", technique=technique)]))
    judgement = of(found, "nll").judgement
    assert judgement is not None
    assert "of one trained model per run, 5 seeds would say more" in judgement.reason
    assert "trained" not in of(found, "time_per_step").judgement.reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"sha256": "other", "random": False}}, "another model"),
        ({"inputs_sha256": "other"}, "another data"),
        (
            {"environment": {**ENVIRONMENT, "device": {**DEVICE, "dtype": "bfloat16"}}},
            "another device (dtype float32 -> bfloat16)",
        ),
        (
            {"workload": {"name": "w", "parameters": {"items": 99, "path": ""}}},
            "another workload in c (items 100 -> 99)",
        ),
        (
            {"technique": {"name": "arm", "parameters": {"k": 2}, "trains": False}},
            "another technique in c arm (k 1 -> 2)",
        ),
    ],
)
def test_another_question_is_refused_unless_forced(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    runs = pair(tmp_path, [record("arm")], [record("arm", **changes)])
    with pytest.raises(UsageError, match=re.escape(f"not comparable: {said} (--force")):
        contrast(*runs)
    found = contrast(*runs, force=True)
    assert found.obstacles == (said,)
    assert of(found, "nll").estimate is not None


def test_where_a_data_file_lies_and_what_a_technique_quotes_is_no_difference(tmp_path: Path) -> None:
    workload = {"name": "w", "parameters": {"items": 100, "path": "path:0123.txt"}, "source": "elsewhere"}
    technique = {"name": "arm", "parameters": {"k": 1}, "trains": False, "source": "a later edition"}
    second = record("arm", workload=workload, technique=technique)
    assert contrast(*pair(tmp_path, [record("arm")], [second])).obstacles == ()


def test_a_model_that_was_never_reached_is_no_other_model(tmp_path: Path) -> None:
    second = record("arm", model=None, inputs_sha256=None, status="failed", reason="no")
    found = contrast(*pair(tmp_path, [record("arm")], [second]))
    assert found.obstacles == ()


def test_runs_without_a_common_cell_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cell in common"):
        contrast(*pair(tmp_path, [record("one")], [record("two")]))


def test_fields_of_the_environment_that_differ_are_told(tmp_path: Path) -> None:
    there = {**ENVIRONMENT, "versions": {"torch": "2.1"}, "argv": ["run"], "cpu": {"threads": 4}}
    a = run(tmp_path / "a", [record("arm")])
    b = run(tmp_path / "b", [record("arm")], environment=there)
    assert contrast(a, b).environment == (("cpu", None, {"threads": 4}), ("versions.torch", "2.0", "2.1"))


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    a, b = pair(tmp_path, [record("base"), record("arm")], [record("base"), record("arm")])
    (b.folder / "cells" / "c.arm.seed0.json").write_text("{")
    found = contrast(a, b)
    assert len(found.damaged) == 1
    assert "c.arm.seed0.json" in found.damaged[0]
    assert found.only == (("c.arm.seed0", "first"),)


def test_a_baseline_that_moved_points_at_the_machine(tmp_path: Path) -> None:
    slower = [record("base", seconds=1.2, salt="b"), record("arm", seconds=1.2, salt="b")]
    (line,) = moved_baselines(contrast(*pair(tmp_path, [record("base"), record("arm")], slower)))
    assert "the baseline base itself is WORSE on time_per_step" in line
