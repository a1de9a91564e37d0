from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import outcome
from bench.report import grids, html, markdown

Make = Callable[..., dict[str, Any]]


def speculating(make: Make, name: str, passed: bool = True) -> dict[str, Any]:
    """An arm of two kinds of prompts whose drafts were judged, and whose steps were taken apart."""
    record = make(name, baseline="autoregressive")
    for part in record["rounds"]:
        samples = part["bursts"][0]["samples"]
        samples["kind"], samples["tokens"] = ["prefill", "decode", "prefill", "decode"], [1, 3, 1, 2]
        samples["seconds"] = [0.1, 0.3, 0.1, 0.1]
        samples["groups"] = ["chat", "sums"]
        samples["counts"] = [
            {"verified": 1, "accepted": 2, "tried_1": 1, "accepted_1": 1, "tried_2": 1, "accepted_2": 1},
            {"verified": 2, "accepted": 0, "tried_1": 2},
        ]
        part["profile"] = {"seconds": [0.4, 0.6], "tokens": [1, 4], "phases": {"draft": [0.1, 0.1], "verify": [0.5]}}
        part["calls"] = {"forward": [0.02, 0.03, 0.02], "draft": [0.005], "verify_2": [0.022]}
        unused = {**part["bursts"][0], "used": False, "samples": {**samples, "counts": [{"tried_1": 100}]}}
        part["bursts"].append(unused)
    record["quality"]["gates"][0]["passed"] = passed
    return record


def of(*records: dict[str, Any]) -> list[grids.Grid]:
    (rows,) = outcome.rows(records).values()
    return grids.of(rows)


def test_kinds_places_and_phases(make: Make) -> None:
    kinds, places, pieces, phases, _ = of(
        make("autoregressive", baseline="autoregressive"), speculating(make, "speculative")
    )
    assert kinds.columns == ("arm", "chat", "sums")
    assert [line[0] for line in kinds.lines] == ["speculative: tpot", "speculative: acceptance_rate"]
    assert kinds.lines[1][1:] == ["1.000", "0.000"]
    assert places.columns == ("arm", "1", "2")
    assert places.lines == [["speculative", "0.333 of 15", "1.000 of 5"]], "five rounds, the unused bursts left out"
    assert pieces.columns == ("arm", "forward", "draft", "verify_2")
    assert pieces.lines == [["speculative", "20 ms (x1.000)", "5 ms (x0.250)", "22 ms (x1.100)"]]
    assert phases.columns == ("arm", "all", "draft", "verify", "rest")
    assert phases.lines == [["speculative", "200 ms", "40 ms (20%)", "100 ms (50%)", "60 ms (30%)"]]


def test_what_failed_its_gate_shows_no_times(make: Make) -> None:
    wrong = speculating(make, "wrong", passed=False)
    for grid in of(wrong, speculating(make, "right")):
        assert {line[0].partition(":")[0] for line in grid.lines} == {"right"}
    assert of(wrong) == []


def test_both_pages_show_them(make: Make, manifest: dict[str, Any]) -> None:
    comparisons = outcome.rows([speculating(make, "speculative")])
    for page in (markdown.as_markdown(manifest, comparisons, []), html.as_html(manifest, comparisons, [])):
        assert "0.333 of 15" in page
        assert "100 ms (50%)" in page


def test_components_of_the_middle_peak_and_what_was_counted(make: Make) -> None:
    """Of five rounds the third highest peak is shown; a seed's count is averaged with the other seeds'."""
    first, second = make("own", baseline="own", seed=0), make("own", baseline="own", seed=1)
    for part, megabytes in zip(first["rounds"], (5, 1, 4, 3, 2), strict=True):
        parts = {"weights": megabytes * 10**6 // 2, "activations": megabytes * 10**5, "operators": 0}
        part["memory"] |= {"peak": megabytes * 10**6, "parts": parts, "rest": 1000, "explained": 0.923}
    second["rounds"] = []
    first["quality"]["counts"] = {"bits_per_parameter": 4.127, "nll_before": 2.0}
    second["quality"]["counts"] = {"bits_per_parameter": 4.127, "nll_before": 3.0}
    first["quality"]["train_seconds"], second["quality"]["train_seconds"] = 8.0, 9.0
    other = make("other", baseline="own", seed=0)
    for part in other["rounds"]:
        part["memory"] = None
    other["quality"]["counts"] = {"nll_before": 1.0, "tried_1": 4}
    memory, counted = of(first, second, other)
    assert memory.columns == ("arm", "peak", "weights", "activations", "not explained", "named")
    assert memory.lines == [["own", "3 MB", "1.5 MB", "300 kB", "1 kB", "92.3%"]]
    assert counted.columns == ("arm", "bits_per_parameter", "nll_before", "train_seconds")
    assert counted.lines == [["own", "4.127", "2.5", "8.5"], ["other", "none", "1", "none"]]
