"""Every registered claim can hold and can fail: planted records decide each both ways."""

from __future__ import annotations

import math

import pytest
from planted_claims import PLANTED, records

from bench import experiment, registry, trial
from bench.claim import meets
from bench.verify import Outcome, examine, ledger

registry.load_plugins()
CLAIMS = {
    (name, claim.name): claim
    for name, entry in registry.techniques.items()
    if not entry.is_preset and not entry.cls.__module__.startswith("known")
    for claim in entry.cls.claims
}
every = pytest.mark.parametrize("key", CLAIMS, ids=".".join)


def outcome(key: tuple[str, str], choice: int, fits: bool) -> Outcome:
    claim = CLAIMS[key]
    (found,) = examine(key[0], claim, records(claim, PLANTED[key][choice], fits))
    assert found.value is not None, found.reason
    return found.outcome


def test_every_claim_has_planted_figures_and_none_is_left_over() -> None:
    assert set(CLAIMS) == set(PLANTED)
    assert len(CLAIMS) == sum(len(e.cls.claims) for e in registry.techniques.values() if not e.is_preset)


@every
def test_what_fulfils_a_claim_reproduces_it(key: tuple[str, str]) -> None:
    assert outcome(key, 0, fits=True) is (Outcome.HOLDS if CLAIMS[key].out_of_reach else Outcome.REPRODUCED)


@every
def test_what_contradicts_a_claim_contradicts_it(key: tuple[str, str]) -> None:
    assert outcome(key, 1, fits=True) is (Outcome.FAILS if CLAIMS[key].out_of_reach else Outcome.CONTRADICTED)


@every
def test_elsewhere_it_holds_or_not_and_says_what_is_not_met(key: tuple[str, str]) -> None:
    claim = CLAIMS[key]
    if not claim.conditions:  # an identity or a theorem: it is claimed everywhere
        assert [outcome(key, choice, fits=False) for choice in (0, 1)] == [Outcome.REPRODUCED, Outcome.CONTRADICTED]
        return
    for choice, wanted in ((0, Outcome.HOLDS), (1, Outcome.FAILS)):
        (found,) = examine(key[0], claim, records(claim, PLANTED[key][choice], fits=False))
        assert found.outcome is wanted
        lacking = [name for name in claim.conditions if name not in claim.needs]
        assert all(f"{name} is " in found.reason for name in lacking)
        assert claim.out_of_reach in found.reason


@every
def test_where_the_papers_workload_is_not_here_the_claim_says_so(key: tuple[str, str]) -> None:
    claim = CLAIMS[key]
    pattern = claim.conditions.get("workload")
    if pattern is not None and not any(meets(name, pattern) for name in registry.workloads):
        assert claim.out_of_reach


def test_what_is_better_than_an_up_to_is_no_contradiction() -> None:
    for key in (("speculative", "speed"), ("bild", "speed"), ("spectr", "speed"), ("h2o", "speed"), ("kivi", "peak")):
        assert CLAIMS[key].expected.high == math.inf, key


@every
def test_a_claim_says_where_it_stands_and_speaks_of_arms_that_are_there(key: tuple[str, str]) -> None:
    claim = CLAIMS[key]
    assert claim.statement
    assert " 20" in claim.source
    for figure in claim.parsed.figures:
        entry = registry.techniques[figure.arm]
        entry.cls(**{**entry.parameters, **figure.parameters})
    assert any(registry.techniques[figure.arm].cls.__module__.endswith(key[0]) for figure in claim.parsed.figures)


def test_names_of_claims_are_unique_within_a_technique() -> None:
    for entry in registry.techniques.values():
        names = [claim.name for claim in entry.cls.claims]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted({name for name, _ in CLAIMS}))
def test_the_run_for_a_techniques_claims_is_a_valid_config_with_all_its_arms(name: str) -> None:
    raw = trial.config([registry.techniques[name]])
    if not raw["comparisons"]:
        assert all(trial.left_out(claim) for claim in registry.techniques[name].cls.claims)
        return
    checked = experiment.check(raw, "claims")
    arms = {
        (arm.registered, key)
        for comparison in checked.comparisons
        for arm in comparison.arms
        for key in [None, *arm.technique.model_dump(mode="json").items()]
        if not isinstance(key, tuple) or isinstance(key[1], str | int | float | bool)
    }
    for claim in registry.techniques[name].cls.claims:
        for figure in claim.parsed.figures if not trial.left_out(claim) else ():
            assert (figure.arm, None) in arms
            assert all((figure.arm, pair) in arms for pair in figure.parameters.items())


def test_a_run_for_claims_leaves_out_what_its_model_cannot_say() -> None:
    qlora, snapkv = (registry.techniques[name] for name in ("qlora", "snapkv"))
    left = {claim.name: trial.left_out(claim) for claim in (*qlora.cls.claims, *snapkv.cls.claims)}
    assert [name for name, why in left.items() if why] == ["65b_in_48_gb", "speed_at_16k", "quality_at_16k"]
    assert left["65b_in_48_gb"] == "it needs the model *llama-65b*, not smollm2-135m"
    assert "do not fit the model's context of 8192" in left["speed_at_16k"]
    # weights on a grid say nothing of quantisation
    assert {one.get("model") for one in trial.config([qlora])["comparisons"]} == {None, trial.TRAINED}
    assert {one.get("model") for one in trial.config([qlora], "tiny:llama")["comparisons"]} == {None}
    assert trial.config([snapkv])["comparisons"] == []


def test_an_arm_that_two_claims_write_differently_is_run_once() -> None:
    (trained,) = (
        one for one in trial.config([registry.techniques["qlora"]])["comparisons"] if one.get("model") == trial.TRAINED
    )
    arms = [(arm["technique"], {k: v for k, v in arm.items() if k != "label"}) for arm in trained["arms"]]
    whole = [
        registry.techniques[name].cls(**{k: v for k, v in given.items() if k != "technique"}).model_dump_json()
        for name, given in arms
    ]
    assert len(set(zip((name for name, _ in arms), whole, strict=True))) == len(arms)


def test_a_claim_that_is_not_measured_says_what_it_needs() -> None:
    found, _ = ledger([registry.techniques["streaming_llm"]], [])
    assert found.outcome is Outcome.UNTESTABLE
    assert "streaming_llm beside window_attention" in found.reason
    assert "device cuda" in found.reason
