"""The same seed twice: planted differences are seen, named and explained."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import cli, determinism, doctor, experiment, manifest, worker
from bench.difference import DIFFERENT, EQUAL, WITHIN, compare, compared
from bench.process import CellFailure

NAMES = ["still", "wavers", "shifting", "raises"]
FACTS = {
    "device": {"kind": "cpu", "name": "a processor", "dtype": "float32"},
    "versions": {"torch": "2.0"},
    "code": {"commit": None, "dirty": None},
    "cpu": {"threads": 2},
}


class Inside:
    """A worker's own code, without a process of its own."""

    started: list[dict[str, Any]]
    references: list[Any]
    """What the arms were compared with."""
    threads: int
    """What it computes with unless told otherwise."""

    def __init__(self, setting: dict[str, Any], environment: dict[str, str]) -> None:
        self.setting = setting
        self.started.append({"threads": setting.get("threads"), "deterministic": setting.get("deterministic")})

    def ready(self, timeout: float) -> None:
        torch.set_num_threads(self.threads)
        self.bench = worker.Bench(self.setting)

    def ask(self, do: str, timeout: float, **arguments: Any) -> Any:
        if do == "quality":
            self.references.append(arguments["reference"])
        try:
            return json.loads(json.dumps(worker.finite(self.bench.do({"do": do, **arguments}))))
        except Exception as error:
            raise CellFailure(worker.status_of(error), str(error)) from None

    def end(self) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Inside]]:
    for name in NAMES:
        importlib.import_module(f"known_answers.{name}")
    Inside.started, Inside.references, Inside.threads = [], [], 1
    monkeypatch.setattr(determinism, "Worker", Inside)
    gc.freeze()  # closing an arm collects garbage: not all that pytest holds
    yield Inside
    gc.unfreeze()
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def examined(arms: list[Any], name: str = "grounded_chat", **workload: Any) -> dict[str, Any]:
    """The report on some arms, a workload and the tiny model."""
    small = {"name": name, "new_tokens": 12, "items": 2, "timed_prompts": 2, "burst_prompts": 1, **workload}
    if name == "grounded_chat":
        small["passage_words"] = 20
    config = {"name": "known", "model": "tiny:llama", "comparisons": [{"workload": small, "arms": arms}]}
    return determinism.Examination(experiment.check(config, "config"), FACTS).go()


def row(report: dict[str, Any], arm: str | None) -> dict[str, Any]:
    (found,) = [row for row in report["rows"] if row["arm"] == arm]
    return found


def wavers(**parameters: Any) -> dict[str, Any]:
    return {"technique": "wavers", "label": "wavers", **parameters}


def test_a_deterministic_arm_is_bitwise_equal_and_is_run_twice_only(inside: type[Inside]) -> None:
    report = examined(["autoregressive", "prompt_lookup"])
    for arm in (None, "autoregressive", "prompt_lookup"):
        found = row(report, arm)
        assert (found["answer"], found["relative"], found["cause"]) == (EQUAL, 0.0, ""), found
    first, second = row(report, None)["sha256"]
    assert first == second
    assert len(first) == 64
    assert inside.started == [{"threads": None, "deterministic": None}] * 6
    assert inside.references[:2] == [None, None]
    assert inside.references[2] == inside.references[3]
    assert inside.references[2]["outputs"], "both runs are held against the baseline's first"
    assert determinism.exit_code(report) == 0


def test_other_figures_each_time_are_different_and_the_metric_is_named(inside: type[Inside]) -> None:
    report = examined(["still", wavers(relative=0.5)])
    found = row(report, "wavers")
    assert (found["answer"], found["metric"], found["cause"]) == (DIFFERENT, "output_nll", "not found")
    assert 1e-3 < found["relative"] < 0.5
    assert "2 of 2 values" in found["detail"]
    tried = [{"threads": 1, "deterministic": None}] * 2 + [{"threads": None, "deterministic": True}] * 2
    assert inside.started[-4:] == tried, "one thing changed at a time"
    assert row(report, "still")["answer"] == EQUAL
    assert determinism.exit_code(report) == 1


def test_other_ids_each_time_have_no_distance(inside: type[Inside]) -> None:
    found = row(examined(["still", wavers(relative=0.0, ids=True)]), "wavers")
    assert (found["answer"], found["metric"], found["relative"]) == (DIFFERENT, "outputs", None)


def test_a_wobble_of_a_millionth_is_equal_within(inside: type[Inside]) -> None:
    report = examined(["still", wavers(relative=1e-6)])
    found = row(report, "wavers")
    assert (found["answer"], found["metric"]) == (WITHIN, "output_nll")
    assert 0 < found["relative"] < 1e-6
    assert determinism.exit_code(report) == 0


@pytest.mark.parametrize(
    ("unless", "cause"),
    [
        ("one thread", "threads: reductions are summed in another order"),
        ("deterministic", "kernels: non-deterministic kernels"),
        ("either", "threads: reductions are summed in another order"),
    ],
)
def test_the_change_that_makes_a_pair_equal_is_the_cause(inside: type[Inside], unless: str, cause: str) -> None:
    inside.threads = 2
    found = row(examined(["still", wavers(unless=unless)]), "wavers")
    assert (found["answer"], found["cause"]) == (DIFFERENT, cause)


def test_a_build_that_differs_is_reported_and_its_arms_share_the_first(inside: type[Inside]) -> None:
    report = examined(["still"], "shifting")
    found = row(report, None)
    assert (found["answer"], found["metric"], found["cause"]) == (DIFFERENT, "built.timed", "not found")
    assert found["sha256"][0] != found["sha256"][1]
    assert row(report, "still")["answer"] == EQUAL
    assert determinism.exit_code(report) == 1


def test_a_build_that_moves_by_a_billionth_has_another_hash_and_is_different(inside: type[Inside]) -> None:
    found = row(examined(["still"], "shifting", ids=False), None)
    assert (found["answer"], found["metric"]) == (DIFFERENT, "built.figure")
    assert 0 < found["relative"] < 1e-9
    assert found["sha256"][0] != found["sha256"][1]


def test_an_arm_that_fails_twice_is_not_run_and_costs_no_other(inside: type[Inside]) -> None:
    report = examined(["still", "raises"])
    found = row(report, "raises")
    assert (found["answer"], found["status"], found["reason"]) == ("not run", "failed", "planted")
    assert row(report, "still")["answer"] == EQUAL
    assert determinism.exit_code(report) == 3


def test_a_build_that_fails_leaves_its_arms_unrun(inside: type[Inside], monkeypatch: pytest.MonkeyPatch) -> None:
    from known_answers.shifting import Shifting

    monkeypatch.setattr(Shifting, "build", lambda self, sources, seed: 1 / 0)
    found = row(examined(["still"], "shifting"), "still")
    assert (found["answer"], found["status"], found["reason"]) == ("not run", "failed", "build: division by zero")


def test_failing_once_of_two_times_is_different(inside: type[Inside], monkeypatch: pytest.MonkeyPatch) -> None:
    from known_answers.raises import Raises

    left = [ValueError("planted once")]
    monkeypatch.setattr(Raises, "work", lambda self, prepared: left and (_ for _ in ()).throw(left.pop()))
    report = examined(["still", "raises"])
    found = row(report, "raises")
    assert (found["answer"], found["metric"], found["reason"]) == (DIFFERENT, "status", "planted once")
    assert determinism.exit_code(report) == 1


QUALITY: dict[str, Any] = {
    "metrics": {"nll": [2.0, 0.001]},
    "outputs": [[1, 2], [3]],
    "texts": [{"output": "a"}],
    "curves": {"loss": [[0.0, 4.0], [1000.0, 3.0]]},
    "counts": {"steps": 2.0},
    "gates": [{"name": "finite", "passed": True, "detail": "0.1"}],
}


@pytest.mark.parametrize(
    ("other", "answer", "metric", "relative"),
    [
        ({}, EQUAL, "", 0.0),
        # relative to the metric's largest: small figures of a metric have no say of their own
        ({"metrics": {"nll": [2.0, 0.0012]}}, WITHIN, "nll", 1e-4),
        ({"metrics": {"nll": [2.1, 0.001]}}, DIFFERENT, "nll", 0.1 / 2.1),
        ({"metrics": {"nll": [None, 0.001]}}, DIFFERENT, "nll", None),
        ({"metrics": {"nll": [2, 0.001]}}, DIFFERENT, "nll", None),
        ({"metrics": {"nll": [2.0, 0.001, 1.0]}}, DIFFERENT, "nll (length)", None),
        ({"metrics": {"nll": [2.0, 0.001], "new": [1.0]}}, DIFFERENT, "new (length)", None),
        ({"outputs": [[1, 2], [4]]}, DIFFERENT, "outputs", None),
        ({"outputs": [[1], [2, 3]]}, DIFFERENT, "outputs (length)", None),
        ({"texts": [{"output": "b"}]}, DIFFERENT, "texts.output", None),
        # losses are not weighed by the number of steps
        ({"curves": {"loss": [[0.0, 4.0], [1000.0, 3.04]]}}, DIFFERENT, "curves.loss.y", 0.01),
        ({"curves": {"loss": []}}, DIFFERENT, "curves.loss.x (length)", None),
        ({"counts": {"steps": 2.001}}, WITHIN, "counts.steps", 0.001 / 2.001),
        ({"gates": [{"name": "finite", "passed": False, "detail": "0.1"}]}, DIFFERENT, "gates.finite", None),
        ({"gates": [{"name": "finite", "passed": True, "detail": "0.2"}]}, EQUAL, "", 0.0),
        ({"train_seconds": 3.0}, EQUAL, "", 0.0),  # no two trainings take the same
        # ids count more than figures, whichever comes first
        ({"metrics": {"nll": [9.0, 0.0]}, "outputs": [[1, 2], [4]]}, DIFFERENT, "outputs", None),
        # of figures the worst counts
        ({"metrics": {"nll": [2.0001, 0.001]}, "counts": {"steps": 2.001}}, WITHIN, "counts.steps", 0.001 / 2.001),
    ],
)
def test_everything_in_the_answer_is_compared(
    other: dict[str, Any], answer: str, metric: str, relative: float | None
) -> None:
    for one, two in ((QUALITY, {**QUALITY, **other}), ({**QUALITY, **other}, QUALITY)):
        found = compare(compared(one), compared(two))
        assert (found.answer, found.metric) == (answer, metric)
        assert found.relative == pytest.approx(relative)


def test_reports_are_kept_by_device_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path))
    newer = {**FACTS, "versions": {"torch": "2.1"}}
    halved = {**FACTS, "device": {**FACTS["device"], "dtype": "bfloat16"}}
    assert determinism.known(FACTS) is None
    determinism.keep({**FACTS, "rows": [1]})
    determinism.keep({**newer, "rows": [2]})
    found = [determinism.known(facts) for facts in (FACTS, newer, halved)]
    assert [report and report["rows"] for report in found] == [[1], [2], None]
    assert determinism.known({**FACTS, "cpu": {"threads": 9}}) == found[0], "what a manifest has besides is no matter"
    determinism.keep({**FACTS, "rows": [3]})
    assert [determinism.known(facts)["rows"] for facts in (FACTS, newer)] == [[3], [2]]
    (tmp_path / "determinism.json").write_text('{"cut')
    assert determinism.known(FACTS) is None
    determinism.keep({**FACTS, "rows": [4]})
    assert determinism.known(FACTS)["rows"] == [4]


def test_doctor_does_it_with_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "one.yaml"
    config.write_text(
        "name: one\nmodel: tiny:llama\nquick: true\ndtype: float32\ncomparisons:\n"
        "  - workload: {name: grounded_chat, passage_words: 20}\n    arms: [autoregressive]\n"
    )
    done = CliRunner().invoke(cli.app, ["doctor", "--determinism", str(config), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    *events, report = map(json.loads, done.output.splitlines())
    assert [event["arm"] for event in events if event["event"] == "row"] == [None, "autoregressive"]
    assert [row["answer"] for row in report["rows"]] == [EQUAL, EQUAL]
    facts = manifest.collect("cpu", "float32")
    known = determinism.known(facts)
    assert known == {key: value for key, value in report.items() if key != "event"}
    assert doctor.same_seed(facts).text.startswith("arms of one run twice: 1 bitwise equal (")
    assert "not examined" in doctor.same_seed(FACTS).text


def test_the_table_names_answer_place_and_cause(inside: type[Inside], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from bench.report import determinism as shown

    inside.threads = 2
    report = examined(["still", wavers(relative=1e-6, unless="one thread"), {**wavers(), "label": "[b]more[/b]"}])
    shown.draw(report, Console(width=200))
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("decoding.")}
    assert "bitwise equal" in lines["still"]
    assert row(report, None)["sha256"][0][:12] in lines["build"]
    assert "equal within" in lines["wavers"]
    assert "output_nll" in lines["wavers"]
    assert "threads: reductions" in lines["wavers"]
    assert "different by" in lines["[b]more[/b]"]
    assert "not found" in lines["[b]more[/b]"]


def test_configs_without_determinism_are_refused() -> None:
    done = CliRunner().invoke(cli.app, ["doctor", "smoke"])
    assert "go with --determinism" in str(done.exception)
