"""Predictions are held against records, and none knows its own measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import registry
from bench.predict import check
from bench.predict.check import Checked, calibrated, calibration_of
from bench.report import predictions
from bench.store import Run

ROOT = Path(__file__).parents[3]
RUN = ROOT / "results/cpu/20261122T114840Z_amd-epyc-2-cores_d6a9a182"
registry.load_plugins()


def cell(name: str, measured: int | None, seen: int | None, runtime: int = 100, family: str = "finetuning") -> Checked:
    return Checked("x/1", name, family, "m", "d", "cpu", measured, runtime, seen)


def test_the_rest_is_what_the_other_cells_say() -> None:
    cells = [cell("a", 1100 + 100, 1000), cell("b", 2400 + 100, 2000), cell("c", 3900 + 100, 3000)]
    assert [one.share for one in cells] == pytest.approx([0.1, 0.2, 0.3])
    found = calibrated(cells)
    assert [one.predicted for one in found] == [1350, 2500, 3550]
    assert found[0].error == pytest.approx(1350 / 1200 - 1)
    assert calibration_of(cells, "cpu").unseen == pytest.approx(0.2)


def test_a_measurement_does_not_move_its_own_prediction() -> None:
    others = [cell("b", 2500, 2000), cell("c", 4000, 3000)]
    one, other = (calibrated([cell("a", measured, 1000), *others])[0] for measured in (1200, 9000))
    assert one.predicted == other.predicted
    assert one.error != other.error


def test_records_of_another_kind_of_device_say_nothing() -> None:
    assert calibration_of([cell("a", 1200, 1000)], "cuda").unseen is None
    alone = calibrated([cell("a", 1200, 1000)])[0]
    assert alone.predicted is None
    assert alone.reason == "no other cell to calibrate with"


def test_a_large_error_is_pointed_out() -> None:
    near = [cell(name, 1200, 1000) for name in ("near", "by", "too")]
    cells = calibrated([*near, cell("off", 2000, 1000)])
    (line,) = predictions.summary(cells)
    assert "4 of 4 cells predicted" in line
    assert "(off); beyond 10 %: off" in line
    page = predictions.as_markdown(cells)
    assert page.count("| near |") == 1
    assert "largest error -40.0 %" in line


def test_figures_are_kept_for_later_predictions(tmp_path: Path) -> None:
    assert check.kept(tmp_path, "cpu").unseen is None
    check.keep(tmp_path, calibrated([cell("a", 1200, 1000), cell("b", 2500, 2000)]))
    kept = check.kept(tmp_path, "cpu")
    assert (kept.unseen, kept.runtime, kept.records) == (pytest.approx(0.15), 100, 2)
    assert check.kept(tmp_path, "cuda").records == 0
    check.keep(tmp_path, [cell("b", 2600, 2000), cell("c", 3000, 2000)])
    assert [(one.cell, one.measured) for one in check.stored(tmp_path)] == [("a", 1200), ("b", 2600), ("c", 3000)]


def test_the_committed_page_is_of_the_committed_figures_and_within_a_tenth() -> None:
    stored = json.loads((ROOT / "results" / check.FIGURES).read_text())
    cells = [Checked(**one) for one in stored["cells"]]
    assert predictions.as_markdown(cells) == (ROOT / "results" / check.PAGE).read_text()
    assert [one.predicted for one in calibrated(cells)] == [one.predicted for one in cells]
    judged = [one for one in cells if one.family in predictions.JUDGED]
    assert {one.cell for one in judged} >= {
        record["cell"] for record in Run.open(RUN).records([]) if record["family"] in predictions.JUDGED
    }
    for one in judged:
        assert one.error is not None, one.reason
        assert abs(one.error) < check.FAR, one.cell


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("name", ["kv_cache.long_document.full_cache.seed0", "finetuning.embedded_text.lora.seed0"])
def test_a_stored_cell_is_foreseen_anew_as_the_page_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record for record in Run.open(RUN).records([]) if record["cell"] == name]
    monkeypatch.setattr(Run, "records", lambda self, damaged: records)
    (anew,) = check.check([Run.open(RUN)])
    stored = check.stored(ROOT / "results")
    (before,) = (one for one in stored if one.cell == name)
    assert anew.seen == pytest.approx(before.seen, rel=0.01), "bench predict --check draws the page anew"
    cells = calibrated([anew, *(one for one in stored if one.cell != name)])
    assert cells[0].error is not None
    assert abs(cells[0].error) < check.FAR
