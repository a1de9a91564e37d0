"""Which verdicts held: of chosen records, and of a tiny run made again."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from fabricated import DEVICE, ENVIRONMENT, pair, record, run
from rich.console import Console

from bench import api, reproduce, rerun
from bench.errors import UsageError
from bench.report import reproduce as shown
from bench.reproduce import Answer, Finding, Reproduction, against

Records = Sequence[dict[str, Any]]
FIRST = [record("base"), record("arm", seconds=0.8, nll=3.1)]


def again(tmp_path: Path, first: Records, second: Records) -> Reproduction:
    return against(*pair(tmp_path, first, second))


def of(found: Reproduction, metric: str = "time_per_step", arm: str = "arm") -> Finding:
    (finding,) = [one for one in found.findings if one.metric.name == metric and one.arm == arm]
    return finding


def repeated(**changes: Any) -> Records:
    """The second run of `FIRST`, its arm with other noise and these changes."""
    return [record("base", salt="b"), record("arm", **{"seconds": 0.8, "nll": 3.1, "salt": "b", **changes})]


def test_what_comes_again_held(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, repeated())
    assert {(one.arm, one.metric.name, one.answer) for one in found.findings} == {
        ("arm", "nll", Answer.HELD),
        ("arm", "time_per_step", Answer.HELD),
        ("arm", "peak_memory", Answer.HELD),
    }
    assert [one.verdict if one else None for one in of(found).verdicts] == ["BETTER", "BETTER"]
    assert found.exit_code == 0


def test_a_machine_that_is_slower_for_all_arms_changes_nothing(tmp_path: Path) -> None:
    slower = [record("base", seconds=3.0, salt="b"), record("arm", seconds=2.4, nll=3.1, salt="b")]
    assert of(again(tmp_path, FIRST, slower)).answer == Answer.HELD


def test_a_verdict_that_turned_flipped(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, repeated(seconds=1.25))
    assert of(found).answer == Answer.FLIPPED
    assert of(found, "nll").answer == Answer.HELD
    assert found.exit_code == 1


def test_intervals_without_a_common_value_lie_apart_though_the_verdict_is_the_same(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, repeated(seconds=0.5))
    assert [one.verdict if one else None for one in of(found).verdicts] == ["BETTER", "BETTER"]
    assert of(found).answer == Answer.APART
    assert found.exit_code == 1


def test_narrow_intervals_within_the_margin_of_each_other_held(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, repeated(seconds=0.81))
    first, second = of(found).first, of(found).second
    assert first is not None
    assert second is not None
    assert first.high < second.low, "the test is of intervals apart"
    assert of(found).answer == Answer.HELD


def test_too_few_rounds_cannot_tell_of_time_but_can_of_quality(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, repeated(rounds=3, seconds=1.25))
    assert of(found).answer == Answer.OPEN
    assert of(found).reason == "3 rounds, at least 5 are needed"
    assert of(found, "nll").answer == Answer.HELD
    assert found.exit_code == 0


@pytest.mark.parametrize(("held", "answer"), [(2.5e8, Answer.HELD), (2.6e8, Answer.APART)])
def test_an_exact_figure_needs_no_interval(tmp_path: Path, held: float, answer: Answer) -> None:
    primary = {"quality": "nll", "latency": "time_per_step", "memory": "held_memory"}

    def runs(arm: float) -> Records:
        return [record("base", rounds=1, primary=primary), record("arm", rounds=1, held=arm, primary=primary)]

    assert of(again(tmp_path, runs(2.5e8), runs(held)), "held_memory").answer == answer


@pytest.mark.parametrize("broken", [0, 1])
def test_a_gate_that_fails_in_one_run_alone_flipped(tmp_path: Path, broken: int) -> None:
    runs = [[record("base"), record("arm", gate=broken != number)] for number in range(2)]
    found = again(tmp_path, *runs)
    assert {one.answer for one in found.findings if one.arm == "arm"} == {Answer.FLIPPED}
    assert f"invalid in the {('first', 'second')[broken]} run alone: gate true: it is not" in of(found).reason
    assert found.exit_code == 1


def test_what_is_invalid_twice_held_without_its_speed(tmp_path: Path) -> None:
    found = again(tmp_path, *[[record("base"), record("arm", gate=False)]] * 2)
    assert (of(found).answer, of(found).reason, of(found).first) == (Answer.HELD, "invalid in both", None)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ([record("base"), record("arm", status="oom", reason="full")], "oom in the second run: full"),
        ([record("base")], "not in the second run"),
    ],
)
def test_a_cell_that_did_not_finish_gives_3(tmp_path: Path, second: Records, said: str) -> None:
    found = again(tmp_path, FIRST, second)
    assert (of(found).answer, of(found).reason) == (Answer.UNFINISHED, said)
    assert found.exit_code == 3


def test_a_baseline_that_did_not_finish_is_told_though_it_has_no_verdict(tmp_path: Path) -> None:
    found = again(tmp_path, FIRST, [record("base", status="timeout", reason="slow"), FIRST[1]])
    assert {one.answer for one in found.findings if one.arm == "base"} == {Answer.UNFINISHED}
    assert found.exit_code == 3


def test_what_the_first_run_did_not_finish_cannot_have_held(tmp_path: Path) -> None:
    found = again(tmp_path, [record("base"), record("arm", status="oom", reason="full")], repeated())
    assert (of(found).answer, of(found).reason) == (Answer.OPEN, "oom in the first run")
    assert found.exit_code == 0


def test_a_seed_that_the_second_run_lacks_did_not_finish(tmp_path: Path) -> None:
    extra = record("arm", seed=1, cell="c.arm.seed1")
    assert of(again(tmp_path, [*FIRST, extra], repeated())).reason == "the second run lacks seeds: 1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"sha256": "other", "random": False}}, "another model"),
        ({"workload": {"name": "w", "parameters": {"items": 9}}}, "another workload"),
        ({"technique": {"name": "arm", "parameters": {"k": 9}, "trains": False}}, "another technique in c arm"),
    ],
)
def test_another_question_is_no_repetition(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"does not repeat .*: {said}"):
        again(tmp_path, FIRST, repeated(**changes))


def test_a_run_is_no_repetition_of_itself(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FIRST)
    with pytest.raises(UsageError, match="no repetition of itself"):
        against(made, made)


def test_another_device_data_or_version_is_told_and_not_refused(tmp_path: Path) -> None:
    there = {**ENVIRONMENT, "device": {**DEVICE, "name": "another"}, "versions": {"torch": "2.1"}}
    other = [{**one, "environment": there, "inputs_sha256": "j", "stamps": ["dirty"]} for one in repeated()]
    a, b = run(tmp_path / "a", FIRST), run(tmp_path / "b", other, there)
    found = against(a, b)
    device = "another device (name A machine, 2 cores -> another)"
    assert found.differing == ("another data", device, f"{b.folder} is stamped dirty")
    assert ("versions.torch", "2.0", "2.1") in found.environment
    console = Console(width=200, file=io.StringIO())
    shown.draw(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line in ("BETTER", "differs: another data", "environment: versions.torch: 2.0 -> 2.1", "3 held"):
        assert line in text


def test_the_event_holds_everything(tmp_path: Path) -> None:
    event = json.loads(json.dumps(shown.as_event(again(tmp_path, FIRST, repeated(seconds=1.25))), allow_nan=False))
    (time,) = [one for one in event["findings"] if one["metric"] == "time_per_step"]
    assert (time["answer"], time["first"]["verdict"], time["second"]["verdict"]) == ("FLIPPED", "BETTER", "WORSE")
    assert event["exit_code"] == 1


def test_a_tiny_run_is_made_again_from_its_folder_alone(tmp_path: Path, lock: Path) -> None:
    """A folder as it comes from another machine, where the prompts lay elsewhere."""
    own = tmp_path / "own.txt"
    own.write_text("".join(f"Prompt number {number}\n" for number in range(8)))
    small = {"new_tokens": 4, "items": 2, "timed_prompts": 6, "burst_prompts": 1, "passage_words": 20}
    workload = {"name": "grounded_chat", **small, "path": "path:0123456789ab.txt"}
    config = {
        "name": "again",
        "description": "Prompts of one's own.",
        "model": "tiny:llama",
        "quick": True,
        "max_time": "1h",
        "comparisons": [{"workload": workload, "arms": ["autoregressive"]}],
    }
    first = run(tmp_path / "first", [], config=config)
    with forked.workers():
        second = api.run(rerun.settings(first, [own]), tmp_path / "second", lock=lock).store
    (made,) = second.records()
    assert (made["status"], made["environment"]["device"]["dtype"]) == ("ok", "float32")
    assert made["workload"]["parameters"]["path"].startswith("path:"), "where it lies here is not kept either"
    first = run(tmp_path / "first", [made], config=config)
    found = reproduce.against(first, second)
    assert found.exit_code == 0
    assert not {"another data", "another device"} & set(found.differing)
    assert ("versions.torch", "2.0") in {(field, value) for field, value, _ in found.environment}
