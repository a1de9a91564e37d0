"""What simulation says of claims: of their own figure, of their own model, and only where shapes tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import registry
from bench.claim import Claim, above, at_most
from bench.predict import foresight
from bench.report import claims as shown
from bench.verify import Finding, Outcome, ledger, published, with_claims

registry.load_plugins()
ROOT = Path(__file__).parents[3]
TRAINING = {"name": "embedded_text", "sequence": 16, "batch_size": 1, "burst_steps": 1, "steps": 2, "items": 2}
QLORA = {claim.name: claim for claim in registry.techniques["qlora"].cls.claims}


def claim(expression: str, **fields: Any) -> Claim:
    said: dict[str, Any] = {"name": "c", "statement": "s", "source": "p 2020", "expected": above(1)}
    return Claim(expression=expression, **{**said, "workload": TRAINING, **fields})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "ANY_MODEL", "tiny:llama")


def test_a_claims_figure_is_that_of_its_two_arms(tiny: None) -> None:
    of = {
        expression: foresight.of("full", claim(expression))
        for expression in (
            "peak_memory(full)",
            "peak_memory(mezo)",
            "peak_memory(full) / peak_memory(mezo)",
            "peak_memory(full) - peak_memory(mezo)",
            "held_memory(full) / held.weights(full)",
        )
    }
    full, mezo, ratio, difference, held = (one.value for one in of.values() if one is not None)
    assert full > mezo > 0
    assert ratio == pytest.approx(full / mezo)
    assert difference == pytest.approx(full - mezo)
    assert held == pytest.approx(4, rel=0.02)  # weights, gradients and two moments, all in 32 bits


def test_whether_it_would_hold_is_said_of_the_claims_own_bound(tiny: None) -> None:
    asked = claim("peak_memory(mezo)", expected=at_most(1e12))
    for expected, words in ((at_most(1e12), "it would hold"), (at_most(1.0), "it would not hold")):
        found = foresight.of("mezo", replace(asked, expected=expected))
        assert found is not None
        assert words in found.words
        assert "tiny:llama" in found.words


@pytest.mark.parametrize(
    "expression", ["nll(full) - nll(lora)", "tpot(full_cache)", "counts.bits_per_parameter(qlora)"]
)
def test_what_no_shape_tells_is_not_foreseen(expression: str, tiny: None) -> None:
    assert foresight.of("full", claim(expression)) is None


def test_a_cache_whose_length_follows_from_weights_is_not_foreseen(tiny: None) -> None:
    context = {"name": "long_document", "context": 96, "new_tokens": 2, "items": 1, "timed_contexts": 1}
    assert foresight.of("fastgen", claim("peak_memory(fastgen)", workload=context)) is None
    assert foresight.of("full_cache", claim("peak_memory(full_cache)", workload=context)) is not None


def test_a_claim_is_foreseen_on_the_model_that_it_speaks_of_or_not_at_all() -> None:
    assert foresight.model_of(QLORA["65b_in_48_gb"]) == "synthetic:llama-65b"
    assert foresight.model_of(claim("peak_memory(full)", conditions={"model": "*no-such-model*"})) is None
    assert foresight.of("full", claim("peak_memory(full)", conditions={"model": "*no-such-model*"})) is None


def test_what_was_foreseen_is_kept_until_the_claim_reads_otherwise(tmp_path: Path) -> None:
    assert foresight.stored(tmp_path) == {}
    asked = QLORA["65b_in_48_gb"]
    found = foresight.Foreseen("qlora", asked.name, foresight.asked(asked), 41e9, "41.0 GB")
    foresight.keep(tmp_path, [found, replace(found, claim="bits", asked="peak_memory(another)")])
    assert foresight.stored(tmp_path) == {("qlora", asked.name): found}
    changes: list[dict[str, Any]] = [
        {"expected": at_most(1.0)},
        {"workload": {**asked.workload, "sequence": 7}},
        {"conditions": {}, "needs": {}},
        {"expression": "peak_memory(qlora)"},
    ]
    for change in changes:
        assert foresight.asked(replace(asked, **change)) != found.asked


def test_it_stands_beside_a_claim_without_record_and_changes_no_verdict(tmp_path: Path) -> None:
    asked = QLORA["65b_in_48_gb"]
    entry: Any = SimpleNamespace(name="qlora", cls=SimpleNamespace(claims=(asked,)))
    (found,) = ledger([entry], [], {("qlora", asked.name): "41.0 GB <b>"})
    assert found.outcome is Outcome.UNTESTABLE
    assert found.value is None
    page = shown.as_markdown([found], tmp_path)
    assert "* foreseen: 41.0 GB &lt;b&gt;" in page
    assert shown.as_event(found, tmp_path)["foreseen"] == "41.0 GB <b>"
    assert (
        "foreseen" not in shown.as_markdown([Finding("qlora", asked, Outcome.UNTESTABLE, "r")], tmp_path).split("##")[1]
    )


def test_the_committed_ledger_is_of_the_committed_records() -> None:
    out = ROOT / "results"
    said = {key: one.words for key, one in foresight.stored(out).items()}
    drawn = shown.as_markdown(ledger(with_claims([]), published(out), said), out)
    assert drawn == (out / "claims.md").read_text(), "draw it anew: bench verify"
