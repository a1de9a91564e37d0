from __future__ import annotations

import pytest

from bench.metrics import GLOSSARY
from bench.report import markdown, table
from bench.stats import Estimate


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
    text = table.as_csv([line], table.COLUMNS)
    assert "'=cmd()" in text
    assert "'@x" in text
    assert ",-1.5," in text


def test_markdown_holds_no_foreign_markup() -> None:
    assert markdown.cell("a|b <script>\nc") == "a\\|b &lt;script> c"


def test_what_an_estimate_rests_on() -> None:
    size, time = GLOSSARY["adapter_bytes"], GLOSSARY["time_per_step"]
    exact = Estimate(800.0, 0.5, 0.5, 0.5, 1, unit="seeds", spread=0.0)
    assert table.counted(size, exact) == "1 seed, exact"
    assert table.change(size, exact) == "x0.500 exact"
    assert table.counted(time, Estimate(1, 0.5, 0.4, 0.6, 5, spread=0.1)) == "5 rounds, 95%"
    alone = Estimate(1, 0.5, None, None, 1, "one unit has no interval")
    assert table.change(time, alone) == "x0.500 (one unit has no interval)"
