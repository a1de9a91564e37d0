"""What the overview says of every ending, in words and in its table."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from bench import outcome
from bench.report import markdown, overview, terminal


@pytest.fixture
def lines(records: list[dict[str, Any]]) -> dict[str, overview.Line]:
    return {line.arm: line for line in overview.lines(outcome.rows(records))}


def test_savings_and_costs_are_those_of_the_verdicts(make: Callable[..., dict[str, Any]]) -> None:
    line = overview.lines(outcome.rows([make("base"), make("fast", tpot=0.05, peak=1.4e9)]))[0]
    assert line.saves == ["50 % time a token"]
    assert line.costs == ["40 % peak memory"]
    assert line.sentence.startswith("saves 50 % time a token (BETTER, at least x0.50")
    assert "costs 40 % peak memory (WORSE, at least x1.39" in line.sentence
    assert "quality: INCONCLUSIVE (known to +/-0.0" in line.sentence


def test_the_same_and_the_undecided_neither_save_nor_cost(make: Callable[..., dict[str, Any]]) -> None:
    line = overview.lines(outcome.rows([make("base"), make("alike", nll=1.99)]))[0]
    assert (line.saves, line.costs) == ([], [])
    assert "memory: SAME (within 1%)" in line.sentence
    assert [answer.word for answer in line.answers] == ["INCONCLUSIVE", "SAME", "SAME"]


def test_quality_is_a_difference_with_its_unit(make: Callable[..., dict[str, Any]]) -> None:
    line = overview.lines(outcome.rows([make("base"), make("worse", nll=3.0)]))[0]
    assert line.costs[0].endswith(" nat/token output nll")
    assert float(line.costs[0].split()[0]) == pytest.approx(1.0, abs=0.1)


def test_what_is_better_the_more_of_it_is_gained_and_lost(make: Callable[..., dict[str, Any]]) -> None:
    base, arm = make("base"), make("arm")
    for one, worth in ((base, 0.2), (arm, 0.6)):
        noise = [0.01 * (-1) ** item for item in range(24)]
        one["quality"]["metrics"]["reward_at_kl"] = [worth + less for less in noise]
        one["primary"] = {**one["primary"], "quality": "reward_at_kl"}
    for arms, told in (
        ([base, arm], "gains 0.400 reward at kl"),
        ([{**arm, "arm": "base"}, {**base, "arm": "arm"}], "loses"),
    ):
        line = overview.lines(outcome.rows(arms))[0]
        assert line.sentence.startswith(told), line.sentence
        assert [one.partition(" ")[0] for one in line.saves + line.costs] == [told.partition(" ")[0]]


def test_every_ending_is_named_with_its_reason(lines: dict[str, overview.Line]) -> None:
    wrong = lines["wrong"]
    assert wrong.sentence.startswith("INVALID: gate lossless: token 3 differs")
    assert "latency, memory: withheld" in wrong.sentence
    assert (wrong.saves, wrong.gate) == ([], "FAILED: lossless")
    assert "UNGATED: nothing checked its output" in lines["unchecked"].sentence
    assert lines["unchecked"].gate == "none ran"
    assert lines["elsewhere"].sentence == "unsupported: needs rotary positions"
    assert lines["diverged"].sentence == "failed: loss is not finite"
    assert "quality: not applicable: random weights" in lines["fast"].sentence
    assert "base" not in lines


def test_a_baseline_that_is_not_well_is_named(make: Callable[..., dict[str, Any]]) -> None:
    base = make("base", status="oom", reason="out of memory", rounds=[], quality=None)
    lines = overview.lines(outcome.rows([base, make("fast")]))
    assert lines[0].sentence == "oom, the baseline: out of memory"
    assert "quality, latency, memory: not compared (the baseline has no such figure)" in lines[1].sentence
    assert overview.lines(outcome.rows([make("base")])) == []


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_shows_the_overview_first(records: list[dict[str, Any]], width: int) -> None:
    shown = io.StringIO()
    terminal.draw(outcome.rows(records), {}, Console(width=width, file=shown))
    text = shown.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert text.index("overview") < text.index("decoding.chat ·") < text.index("warnings")
    assert "INCONCLUSIVE" in text
    assert "token 3 differs" in text
    assert "such <b>kernel</b>" in text


def test_a_narrow_terminal_cuts_nothing_off(make: Callable[..., dict[str, Any]]) -> None:
    record = make("some_technique_with_a_name", tpot=0.05, peak=1.4e9)
    names = ["first_gate", "second_gate", "third_gate", "mask_oracle"]
    record["quality"]["gates"] = [{"name": name, "passed": True, "detail": ""} for name in names]
    shown = io.StringIO()
    terminal.draw(outcome.rows([make("base"), record]), {}, Console(width=80, file=shown))
    table = shown.getvalue().partition("saves 50 %")[0]
    assert all(word in table for word in (*names, "INCONCLUSIVE", "50 % time a", "40 % peak"))


def test_markdown_begins_with_the_overview(records: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
    text = markdown.as_markdown(manifest, outcome.rows(records), ["x.json is no record"])
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["## Overview", "## Warnings", "## decoding.chat"]
    assert text.splitlines()[0].endswith(
        "some-model (1.5B parameters) and shapes (7B parameters) on Test CPU, 2 cores, float32"
    )
    assert "<script>" not in text
    assert "no \\| such &lt;b>kernel" in text
    assert "* x.json is no record" in text


def test_an_arm_of_several_comparisons_is_told_apart(make: Callable[..., dict[str, Any]]) -> None:
    names = ("base", "fast")

    def arms(comparison: str, name: str = "chat", **parameters: Any) -> list[dict[str, Any]]:
        workload = {"name": name, "parameters": {"items": 20, **parameters}}
        return [make(arm, comparison=comparison, workload=workload, cell=f"{comparison} {arm}") for arm in names]

    sized = [*arms("chat", context=512), *arms("chat-2", context=1024)]
    lines = overview.lines(outcome.rows(sized))
    assert [line.place for line in lines] == ["decoding, context 512", "decoding, context 1024"]
    assert [row[0] for row in overview.cells(lines)] == [f"fast against base, {line.where}" for line in lines]
    assert [line.place for line in overview.lines(outcome.rows(arms("chat", context=512)))] == ["decoding"]
    lines = overview.lines(outcome.rows([*sized[:2], *arms("six", "six_categories", context=9)]))
    assert [line.where for line in lines] == ["chat", "six_categories"]
    console = Console(file=io.StringIO(), width=200)
    terminal._draw_overview(overview.lines(outcome.rows(sized)), console)
    assert "fast (context 512):" in console.file.getvalue()
