"""Comparisons that differ in one number stand in one table, which says from where an arm pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import outcome
from bench.report import html, markdown, scaling

Make = Callable[..., dict[str, Any]]


def sized(make: Make, context: int, tpots: dict[str, float], passed: bool = True, **others: Any) -> list[Any]:
    """A comparison's records: a baseline of 100 ms a token, and arms."""
    found = []
    for name, tpot in {"full": 0.1, **tpots}.items():
        one = make(
            name,
            tpot=tpot,
            baseline="full",
            comparison=f"c-{context}-{others}",
            cell=f"{context}{name}{others}",
            workload={
                "name": "text",
                "parameters": {"context": context, "batch": 1, "path": "", "aware": True, **others},
            },
        )
        one["quality"]["gates"][0]["passed"] = passed or name == "full"
        found.append(one)
    return found


def of(*records: list[Any]) -> dict[str, list[str]]:
    """Arm and metric -> its line in the only table."""
    (grid,) = scaling.of(outcome.rows([one for some in records for one in some]))
    assert grid.columns[0] == "arm"
    return {line[0]: line[1:] for line in grid.lines}


def test_from_where_an_arm_pays(make: Make) -> None:
    # given in no order
    lines = of(
        sized(make, 2048, {"early": 0.05, "late": 0.07, "never": 0.2, "once": 0.1}),
        sized(make, 512, {"early": 0.08, "late": 0.15, "never": 0.2, "once": 0.1}),
        sized(make, 1024, {"early": 0.06, "late": 0.1, "never": 0.2, "once": 0.06}),
    )
    said = {name.removesuffix(": tpot"): line[-1] for name, line in lines.items() if name.endswith(": tpot")}
    assert said == {
        "full": "the baseline",
        "early": "512 at the latest",
        "late": "between 1,024 and 2,048",
        "never": "not seen up to 2,048",
        "once": "not seen up to 2,048",  # better in the middle only
    }
    shown = [float(text.partition(" ")[0]) for text in lines["late: tpot"][:3]]
    assert shown == [pytest.approx(figure, rel=0.02) for figure in (150, 100, 70)]
    assert all(line[-1] == "no verdict" for name, line in lines.items() if name.endswith((": ttft", ": output_nll")))


def test_a_size_at_which_an_arm_is_missing_is_not_made_up(make: Make) -> None:
    lines = of(sized(make, 512, {}), sized(make, 1024, {"arm": 0.15}), sized(make, 2048, {"arm": 0.05}))
    assert lines["arm: tpot"][0] == "not measured"
    assert lines["arm: tpot"][-1] == "between 1,024 and 2,048"


def test_what_failed_its_gate_pays_nowhere(make: Make) -> None:
    lines = of(sized(make, 512, {"arm": 0.15}), sized(make, 1024, {"arm": 0.05}, passed=False))
    assert lines["arm: tpot"][1:] == ["withheld", "not seen up to 1,024"]


def test_only_what_differs_in_one_number_stands_together(make: Make) -> None:
    a, b = sized(make, 512, {"arm": 0.05}), sized(make, 1024, {"arm": 0.05})
    assert scaling.of(outcome.rows(a)) == []
    assert scaling.of(outcome.rows([*a, *sized(make, 1024, {"arm": 0.05}, batch=4)])) == []
    assert scaling.of(outcome.rows([*a, *sized(make, 1024, {"arm": 0.05}, aware=False)])) == []
    for one in b:
        one["model"] = {**one["model"], "name": "another"}
    assert scaling.of(outcome.rows([*a, *b])) == []
    both = scaling.of(outcome.rows([*a, *sized(make, 512, {"arm": 0.05}, batch=4), *sized(make, 1024, {"arm": 0.05})]))
    assert [grid.columns[1:3] for grid in both] == [("context 512", "context 1,024"), ("batch 1", "batch 4")]


def test_both_pages_show_it(make: Make, manifest: dict[str, Any]) -> None:
    comparisons = outcome.rows([*sized(make, 512, {"arm": 0.15}), *sized(make, 1024, {"arm": 0.05})])
    for page in (markdown.as_markdown(manifest, comparisons, []), html.as_html(manifest, comparisons, [])):
        assert "text by context: an arm pays from where it is BETTER than full" in page
        assert "between 512 and 1,024" in page
