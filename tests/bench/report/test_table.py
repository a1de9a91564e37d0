from __future__ import annotations

from typing import Any

import pytest

from bench.metrics import GLOSSARY
from bench.report import files, table
from bench.stats import Estimate


def record(arm: str, tpot: float, nll: float, **changes: Any) -> dict[str, Any]:
    samples = {"kind": ["prefill", "decode"], "seconds": [1.0, tpot], "tokens": [1, 1]}
    memory = {"peak": 100, "reserved": None, "named": 80, "largest": {}}
    rounds = [{"round": n, "bursts": [{"used": True, "samples": samples}], "memory": memory} for n in range(5)]
    gates = [{"name": "lossless", "passed": True, "detail": "equal"}]
    return {
        "cell": f"c.{arm}",
        "comparison": "c",
        "family": "decoding",
        "arm": arm,
        "baseline": "base",
        "seed": 0,
        "status": "ok",
        "reason": "",
        "stamps": [],
        "rounds": rounds,
        "quality": {"metrics": {"output_nll": [nll, nll + 1]}, "gates": gates},
        "model": {"random": False},
        "primary": {"quality": "output_nll", "latency": "tpot", "memory": "peak_memory"},
        **changes,
    }


def rows(*records: dict[str, Any]) -> dict[str, table.Row]:
    return {row.record["arm"]: row for row in table.rows(records)["c"]}


def test_changes_against_the_baseline() -> None:
    found = rows(record("base", 0.1, 2.0), record("fast", 0.05, 2.5))
    assert found["base"].is_baseline
    metric, estimate, _ = found["fast"].shown("latency")
    assert (metric.name, estimate.change) == ("tpot", pytest.approx(0.5))
    assert found["fast"].shown("quality")[1].change == pytest.approx(0.5)
    assert table.change(metric, found["base"].shown("latency")[1]) == "baseline"


def test_a_failed_gate_withholds_speed_and_memory_in_every_output() -> None:
    bad = record("bad", 0.01, 2.0)
    bad["quality"]["gates"] = [{"name": "lossless", "passed": False, "detail": "token 3 differs"}]
    comparisons = table.rows([record("base", 0.1, 2.0), bad])
    row = comparisons["c"][1]
    assert (row.status, row.shown("latency")[1:]) == ("invalid", (None, "withheld"))
    assert "token 3 differs" in row.reason
    lines = [line for line in table.flat(comparisons) if line["arm"] == "bad"]
    assert {line["metric"]: line["value"] for line in lines if line["metric"] != "output_nll"} == {
        "ttft": None,
        "tpot": None,
        "throughput": None,
        "peak_memory": None,
        "held_memory": None,
    }
    assert next(line for line in lines if line["metric"] == "output_nll")["value"] == 2.5


def test_no_gate_reads_ungated_and_a_failed_cell_keeps_its_reason() -> None:
    free = record("free", 0.1, 2.0)
    free["quality"]["gates"] = []
    broken = record("broken", 0.1, 2.0, status="oom", reason="out of memory", quality=None, rounds=[])
    found = rows(record("base", 0.1, 2.0), free, broken)
    assert found["free"].status == "ungated"
    assert (found["broken"].status, found["broken"].reason) == ("oom", "out of memory")
    assert table.flat({"c": [found["broken"]]})[0]["reason"] == "out of memory"


def test_verdicts_stand_beside_the_primary_metrics() -> None:
    fast = record("fast", 0.05, 2.5)
    for number, part in enumerate(fast["rounds"]):
        wobble = {"kind": ["prefill", "decode"], "seconds": [1.0, 0.05 + 0.001 * number], "tokens": [1, 1]}
        part["bursts"] = [{"used": True, "samples": wobble}]
    found = rows(record("base", 0.1, 2.0), fast)
    assert found["fast"].judgements["tpot"].verdict == "BETTER"
    assert found["fast"].judgements["peak_memory"].verdict == "SAME"
    assert found["fast"].judgements["output_nll"].verdict == "INCONCLUSIVE"
    assert not found["base"].judgements
    bad = {**fast, "quality": {**fast["quality"], "gates": [{"name": "g", "passed": False, "detail": ""}]}}
    assert "tpot" not in rows(record("base", 0.1, 2.0), bad)["fast"].judgements


def test_random_weights_have_no_quality() -> None:
    made_up = record("base", 0.1, 2.0, model={"random": True})
    assert rows(made_up)["base"].shown("quality")[1:] == (None, "not applicable: random weights")
    assert rows(made_up)["base"].shown("latency")[1].value == pytest.approx(0.1)


def test_without_a_baseline_nothing_is_compared() -> None:
    found = rows(record("base", 0.1, 2.0, status="failed"), record("fast", 0.05, 2.5))
    assert found["fast"].shown("latency")[1].change is None


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [
        ("peak_memory", 538_090_392, "538 MB"),
        ("peak_memory", 47_995_000_000, "48 GB"),
        ("kv_cache_bytes", 512, "512 B"),
        ("tpot", 0.0451, "45.1 ms/token"),
        ("time_per_step", 3.21, "3.21 s"),
        ("output_nll", 2.8291, "2.829 nat/token"),
        ("token_agreement", 0.9871, "0.987"),
        ("throughput", 1234.5, "1234 tokens/s"),
    ],
)
def test_values(name: str, number: float, shown: str) -> None:
    assert table.value(GLOSSARY[name], number) == shown


def test_change_forms() -> None:
    assert table.change(GLOSSARY["tpot"], Estimate(1, 0.5, 0.4, 0.6, 5)) == "x0.500 [0.400, 0.600]"
    assert table.change(GLOSSARY["nll"], Estimate(1, 0.1, -0.1, 0.3, 5)) == "+0.100 [-0.100, +0.300]"
    assert table.change(GLOSSARY["kv_cache_bytes"], Estimate(1, 0.25, 0.25, 0.25, 5)) == "x0.250 exact"
    assert table.change(GLOSSARY["tpot"], Estimate(1, None, None, None, 0, "a ratio to zero")) == "a ratio to zero"


def test_a_spreadsheet_takes_no_formula() -> None:
    line = {**dict.fromkeys(table.COLUMNS), "arm": "=cmd()", "reason": "@x", "value": -1.5}
    text = files.as_csv([line])
    assert "'=cmd()" in text
    assert "'@x" in text
    assert ",-1.5," in text


def test_markdown_holds_no_foreign_markup() -> None:
    assert files._cell("a|b <script>\nc") == "a\\|b &lt;script> c"
