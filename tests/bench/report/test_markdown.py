"""The report as Markdown tells every metric, and withholds what a failed gate withholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import outcome
from bench.report import markdown

Make = Callable[..., dict[str, Any]]


def line(text: str, name: str) -> list[str]:
    """The cells of the line of that metric."""
    (found,) = (row for row in text.splitlines() if row.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_every_other_metric_has_a_line_with_its_change(make: Make, manifest: dict[str, Any]) -> None:
    base, own, wrong = (make(name, baseline="base") for name in ("base", "own", "wrong"))
    for record, error in ((base, 0.0), (own, 0.09), (wrong, 0.12)):
        record["quality"]["metrics"]["weight_error"] = [error] * 20
    del base["quality"]["metrics"]["weight_error"]
    wrong["quality"]["gates"][0]["passed"] = False
    text = markdown.as_markdown(manifest, outcome.rows([base, own, wrong]), [])
    assert line(text, "weight_error")[:2] == ["not measured", "0.090, the baseline has no such figure"]
    shown, own_memory, withheld = line(text, "held_memory")
    assert shown == "400 MB, baseline"
    assert own_memory.startswith("400 MB, x1.000")
    assert withheld == "withheld"
    for name in {record for row in (base, own) for record in row["primary"].values()}:
        assert f"| {name} |" not in text, "primary metrics stand with their verdicts"
    assert "* **held_memory** [B, lower is better]" in text
