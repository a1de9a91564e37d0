"""Claims against stored records: which are read, how they are paired, and what is said where nothing can be said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fabricated import DEVICE, ENVIRONMENT, ended, record, run
from typer.testing import CliRunner

from bench import cli, evidence, trial
from bench.claim import Claim, Expected, about, above, at_least
from bench.errors import UsageError
from bench.registry import Entry
from bench.report import claims as shown
from bench.store import Run
from bench.technique import Technique
from bench.verify import Finding, Outcome, examine, ledger, published


def claim(expression: str = "time_per_step(base) / time_per_step(arm)", **changes: Any) -> Claim:
    given: dict[str, Any] = {"expected": above(1.0), "name": "faster", "statement": "It is.", "source": "A 2020"}
    return Claim(expression=expression, workload={"name": "w"}, **{**given, **changes})


def one(asked: Claim, *records: dict[str, Any]) -> Finding:
    (found,) = examine("arm", asked, records)
    return found


def entry(*claims: Claim) -> Entry[Technique]:
    return Entry("arm", type("Arm", (), {"claims": claims, "family": "f"}))  # type: ignore[arg-type]


def test_a_ratio_is_paired_by_round_and_has_its_interval() -> None:
    found = one(claim(), record("base", seconds=2.0), record("arm", seconds=1.0))
    assert found.outcome is Outcome.REPRODUCED
    assert found.value == pytest.approx(2.0, rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert 1.9 < found.low < found.value < found.high < 2.1


def test_the_interval_decides_and_not_the_value() -> None:
    base, arm = record("base", seconds=1.0), record("arm", seconds=0.999)
    found = one(claim(), base, arm)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0 < found.high
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "on both sides of above 1" in found.reason


def test_too_few_rounds_decide_nothing() -> None:
    found = one(claim(), record("base", seconds=2.0, rounds=3), record("arm", seconds=1.0, rounds=3))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "at least 5 are needed" in found.reason


def test_rounds_that_did_not_run_in_turn_are_not_paired() -> None:
    base, arm = record("base", seconds=2.0), record("arm", seconds=1.0)
    for part in base["rounds"]:
        part["started"] = 1.0
    for part in arm["rounds"]:
        part["started"] = 2.0
    found = one(claim(), base, arm)
    assert found.outcome is Outcome.UNTESTABLE
    assert "share no round" in found.reason
    assert one(claim("nll(arm) - nll(base)", expected=about(0.0, 0.01)), base, arm).outcome is Outcome.REPRODUCED


def test_times_alike_to_the_last_digit_are_suspicious() -> None:
    base, arm = record("base"), record("arm")
    for made, seconds in ((base, 2.0), (arm, 1.0)):
        for part in made["rounds"]:
            part["bursts"][0]["samples"]["seconds"] = [seconds]
    assert "clock is suspicious" in one(claim(), base, arm).reason


def test_a_failed_gate_withholds_speed_and_memory_and_decides_a_gates_claim() -> None:
    base, arm = record("base", seconds=2.0), record("arm", seconds=1.0, gate=False)
    found = one(claim(), base, arm)
    assert found.outcome is Outcome.UNTESTABLE
    assert "withheld" in found.reason
    assert one(claim("gates.true(arm)", expected=at_least(1.0)), base, arm).outcome is Outcome.CONTRADICTED
    assert one(claim("nll(arm)", expected=above(1.0)), base, arm).outcome is Outcome.REPRODUCED


def test_random_weights_have_no_quality() -> None:
    arms = [record(name, model={"random": True, "origin": "random"}) for name in ("base", "arm")]
    found = one(claim("nll(arm) - nll(base)", expected=about(0.0, 1.0)), *arms)
    assert found.outcome is Outcome.UNTESTABLE
    assert "random weights" in found.reason


def test_weights_on_a_grid_say_nothing_of_quantisation() -> None:
    asked = claim("nll(arm)", needs={"weights": "trained"})
    found = one(asked, record("arm", model={"origin": "weights on a 4-bit grid", "random": False}))
    assert found.outcome is Outcome.UNTESTABLE
    assert found.reason == "weights is on a 4-bit grid, not trained"


def test_a_cell_that_did_not_end_well_is_named() -> None:
    over = ended("arm", status="oom", reason="no memory left", environment=ENVIRONMENT, workload={})
    found = one(claim("nll(arm)"), over)
    assert found.outcome is Outcome.UNTESTABLE
    assert "arm ended as oom: no memory left" in found.reason


def test_arms_measured_in_two_environments_are_not_compared() -> None:
    other = {**ENVIRONMENT, "versions": {"torch": "2.1"}}
    found = one(claim(), record("base", seconds=2.0), record("arm", environment=other))
    assert found.outcome is Outcome.UNTESTABLE
    assert "two environments" in found.reason


def test_parameters_choose_the_arm_and_those_not_spoken_of_must_be_alike() -> None:
    def made(label: str, form: str, rate: float, nll: float) -> dict[str, Any]:
        technique = {"name": "t", "registered": "t", "parameters": {"form": form, "rate": rate}, "trains": False}
        return record(label, nll=nll, technique=technique)

    asked = claim("nll(t[form=a]) - nll(t[form=b])", expected=above(0.5))
    arms = [made("1", "a", 0.1, 4.0), made("2", "b", 0.1, 3.0), made("3", "a", 0.2, 3.0), made("4", "b", 0.2, 4.0)]
    found = list(examine("t", asked, arms))
    assert [one.outcome for one in found] == [Outcome.REPRODUCED, Outcome.CONTRADICTED]
    assert "1 (form=a, rate=0.1) against 2 (form=b, rate=0.1)" in found[0].subject


def test_arms_of_two_names_agree_on_what_they_share_but_for_what_is_free_or_a_preset_sets() -> None:
    def made(label: str, name: str, nll: float, **parameters: Any) -> dict[str, Any]:
        technique = {"name": name, "registered": name, "parameters": parameters, "trains": False}
        return record(label, nll=nll, technique=technique)

    def names(asked: Claim, *arms: dict[str, Any]) -> list[str]:
        return [finding.subject.partition(";")[0] for finding in examine("t", asked, arms)]

    arms = [made(f"{name}{width}", name, 3.0, width=width, **{name: 1}) for name in "ab" for width in (2, 4)]
    asked = claim("nll(a) - nll(b)", expected=about(0.0, 1.0))
    alike = ["a2 (a=1, width=2) against b2 (b=1, width=2)", "a4 (a=1, width=4) against b4 (b=1, width=4)"]
    assert names(asked, *arms) == alike
    assert len(names(claim("nll(a[width=2]) - nll(b)", expected=about(0.0, 1.0)), *arms)) == 2
    # cdpo is dpo with another loss and smoothing: it may differ in these, and in no more
    base = made("d", "dpo", 3.0, loss="sigmoid", label_smoothing=0.0, beta=0.1)
    smooth = made("c", "cdpo", 3.0, loss="cdpo", label_smoothing=0.1, beta=0.1)
    preset = claim("nll(dpo) - nll(cdpo)", expected=about(0.0, 1.0))
    assert len(names(preset, base, smooth)) == 1
    smooth["technique"]["parameters"]["beta"] = 0.5
    assert not names(preset, base, smooth)


def test_a_figure_that_stands_for_something_else_decides_nothing() -> None:
    base, arm = record("base", nll=3.0), record("arm", nll=2.0)
    asked = claim("nll(arm) - nll(base)", expected=Expected(high=0.0), free=("rate",))
    assert one(asked, base, arm).outcome is Outcome.REPRODUCED
    arm["quality"]["notes"] = {"too short: nll is that of its beginning": "take more"}
    found = one(asked, base, arm)
    assert found.outcome is Outcome.UNTESTABLE
    assert found.reason == "arm under seed 0: too short: nll is that of its beginning"
    # and it is nobody's best
    other = record("other", nll=2.5, technique={**arm["technique"], "parameters": {"k": 1, "rate": 2}})
    assert one(asked, base, arm, other).subject.startswith("other")


def test_one_training_decides_nothing() -> None:
    def trained(seed: int) -> list[dict[str, Any]]:
        technique = {"name": "arm", "parameters": {}, "trains": True}
        base = {"name": "base", "parameters": {}, "trains": True}
        return [
            record("base", nll=3.0, technique=base, seed=seed, salt=str(seed)),
            record("arm", nll=2.0, technique=technique, seed=seed, salt=str(seed)),
        ]

    asked = claim("nll(arm) - nll(base)", expected=Expected(high=0.0))
    found = one(asked, *trained(0), *trained(1))
    assert (found.outcome, found.thin) == (Outcome.INCONCLUSIVE, True)
    many = "100 items of 2 trained models, its interval covers both"
    assert found.reason == f"{many}, 3 trainings at least say more than chance"
    assert one(asked, *trained(0), *trained(1), *trained(2)).outcome is Outcome.REPRODUCED


def test_few_trainings_that_disagree_decide_nothing_however_many_items_they_were_scored_on() -> None:
    def trained(seed: int, better: float) -> list[dict[str, Any]]:
        return [
            record(name, nll=nll, technique={"name": name, "parameters": {}, "trains": True}, seed=seed, salt=str(seed))
            for name, nll in (("base", 3.0), ("arm", 3.0 - better))
        ]

    def asked_of(*better: float) -> Finding:
        asked = claim("nll(arm) - nll(base)", expected=Expected(high=0.0))
        return one(asked, *(record for seed, by in enumerate(better) for record in trained(seed, by)))

    torn = asked_of(0.01, 0.3, 0.6)
    assert (torn.outcome, torn.thin) == (Outcome.INCONCLUSIVE, False)
    assert torn.low is not None
    assert torn.high is not None
    # Student's t with two degrees of freedom, 4.303 standard errors of .01, .3 and .6
    assert (torn.high - torn.low) / 2 == pytest.approx(4.303 * 0.2951 / 3**0.5, rel=0.01)
    agreed = asked_of(0.29, 0.3, 0.31)
    assert agreed.outcome is Outcome.REPRODUCED
    # from five on they are the units
    assert "5 seeds" in asked_of(0.29, 0.3, 0.31, 0.3, 0.3).reason


def test_where_a_parameter_is_tuned_the_best_of_each_side_are_compared() -> None:
    def made(name: str, rate: float, seconds: float, width: int = 4, **changes: Any) -> dict[str, Any]:
        technique = {"name": name, "parameters": {"rate": rate, "width": width}, "trains": False}
        return record(f"{name}{rate}", seconds=seconds, technique=technique, baseline="base1", **changes)

    bases = [made("base", 1, 3.0), made("base", 2, 2.0), made("base", 3, 2.5)]
    arms = [made("arm", 1, 9.0), made("arm", 2, 1.5)]
    asked = claim(free=("rate",))
    found = one(asked, *bases, *arms)
    assert found.subject.startswith("base2 (rate=2, width=4) against arm2 (rate=2"), "not the comparison's baseline"
    assert found.reason == "6 rounds; each the best of its settings: 3 of base, 2 of arm"
    # an arm that failed is nobody's best, and is told where it is the only one
    failed = made("arm", 3, 0.1, status="failed", reason="it broke")
    assert one(asked, *bases, *arms, failed).value == found.value
    assert "it broke" in one(asked, *bases, failed).reason
    # what is not free is not chosen
    apart = list(examine("arm", asked, [*bases, *arms, made("base", 4, 1.0, width=8), made("arm", 4, 1.0, width=8)]))
    assert [one.subject.split(" ")[0] for one in apart] == ["base2", "base4"]
    assert apart[0].value == found.value


def test_the_best_is_by_the_figures_own_direction() -> None:
    arms = [[record(name, nll=nll)] for name, nll in (("a", 3.0), ("b", 2.0), ("c", 2.5))]
    for arm in arms:
        arm[0]["quality"]["metrics"]["next_token_accuracy"] = arm[0]["quality"]["metrics"]["nll"]
    lower, higher = (claim(f"{name}(arm)").parsed.figures[0] for name in ("nll", "next_token_accuracy"))
    assert evidence.best(lower, arms)[0]["arm"] == "b"
    assert evidence.best(higher, arms)[0]["arm"] == "a"


def test_the_comparisons_baseline_stands_for_its_technique() -> None:
    base = {"name": "base", "registered": "base", "parameters": {}, "trains": True}
    arms = [record("slow", seconds=3.0, technique=base), record("tuned", seconds=2.0, technique=base), record("arm")]
    assert len(list(examine("arm", claim(), arms))) == 2
    found = one(claim(), *({**arm, "baseline": "tuned"} for arm in arms))
    assert found.subject.startswith("tuned against arm")
    assert found.value == pytest.approx(2.0, rel=0.02)


def test_the_newest_run_of_a_setting_counts_and_runs_that_cannot_be_published_do_not(tmp_path: Path) -> None:
    slow = [record("base", seconds=1.0), record("arm", seconds=2.0)]
    fast = [record("base", seconds=2.0), record("arm", seconds=1.0)]
    run(tmp_path / "x" / "20260101T000000Z_m_c", slow)
    run(tmp_path / "x" / "20260102T000000Z_m_c", fast)
    run(tmp_path / "quick" / "x" / "20260103T000000Z_m_c", slow)
    run(tmp_path / "dirty" / "20260104T000000Z_m_c", slow)
    (found,) = ledger([entry(claim())], published(tmp_path))
    assert found.outcome is Outcome.REPRODUCED
    assert found.run is not None
    assert found.run.name == "20260102T000000Z_m_c"


def test_a_newer_run_with_too_few_rounds_does_not_hide_an_older_one(tmp_path: Path) -> None:
    enough = [record("base", seconds=2.0), record("arm", seconds=1.0)]
    few = [record("base", seconds=2.0, rounds=2), record("arm", seconds=1.0, rounds=2)]
    undecided = [record("base", seconds=1.0), record("arm", seconds=0.999)]
    for day, arms in enumerate((enough, few)):
        run(tmp_path / "x" / f"2026010{day}T000000Z_m_c", arms)
    (found,) = ledger([entry(claim())], published(tmp_path))
    assert found.outcome is Outcome.REPRODUCED
    # one that has enough rounds and still decides nothing is what there is to say
    run(tmp_path / "x" / "20260103T000000Z_m_c", undecided)
    (found,) = ledger([entry(claim())], published(tmp_path))
    assert found.outcome is Outcome.INCONCLUSIVE


def test_an_arm_that_failed_is_not_hidden_by_an_older_run(tmp_path: Path) -> None:
    for day, gate in enumerate((True, False)):
        arms = [record("base", seconds=2.0), record("arm", seconds=1.0, gate=gate)]
        run(tmp_path / "x" / f"2026010{day}T000000Z_m_c", arms)
    (found,) = ledger([entry(claim())], published(tmp_path))
    assert found.outcome is Outcome.UNTESTABLE
    assert "its speed and memory are withheld" in found.reason
    # nor by another setting in which the claim holds
    elsewhere = {**ENVIRONMENT, "device": {**DEVICE, "name": "Another"}}
    arms = [record("base", seconds=2.0, environment=elsewhere), record("arm", seconds=1.0, environment=elsewhere)]
    run(tmp_path / "x" / "20260103T000000Z_m_c", arms)
    found_in_both = {one.outcome for one in ledger([entry(claim())], published(tmp_path))}
    assert found_in_both == {Outcome.UNTESTABLE, Outcome.REPRODUCED}


def test_arms_are_compared_under_the_seeds_that_both_have() -> None:
    base = [record("base", nll=3.0, seed=seed, cell=f"c.base.seed{seed}") for seed in (0, 1)]
    arm = [record("arm", nll=2.9), record("arm", nll=1.0, salt="far", seed=2, cell="c.arm.seed2")]
    found = one(claim("nll(arm) - nll(base)", expected=about(-0.1, 0.01)), *base, *arm)
    assert found.outcome is Outcome.REPRODUCED, "seed 2 of the arm has nothing to stand beside"
    none = one(claim("nll(arm) - nll(base)", expected=about(-0.1, 0.01)), base[1], arm[1])
    assert none.outcome is Outcome.UNTESTABLE
    assert "no seed in common" in none.reason


def test_another_draft_is_another_setting(tmp_path: Path) -> None:
    for day, draft in enumerate(("one", "two")):
        read = [{"role": "target", "name": "small"}, {"role": "draft", "name": draft}]
        arms = [record("base", seconds=2.0), {**record("arm", seconds=1.0), "prepared": {"reads": read}}]
        run(tmp_path / "x" / f"2026010{day}T000000Z_m_c", arms)
    assert [", draft two, " in f.subject for f in ledger([entry(claim())], published(tmp_path))] == [True, False]


def test_another_machine_is_another_line(tmp_path: Path) -> None:
    arms = [record("base", seconds=2.0), record("arm", seconds=1.0)]
    run(tmp_path / "x" / "1", arms)
    environment = {**ENVIRONMENT, "device": {**DEVICE, "kind": "cuda", "name": "A GPU"}}
    run(tmp_path / "x" / "2", [{**arm, "environment": environment} for arm in arms])
    found = ledger([entry(claim(conditions={"device": "cuda"}))], published(tmp_path))
    assert [one.outcome for one in found] == [Outcome.REPRODUCED, Outcome.HOLDS]
    assert found[1].reason.startswith("device is cpu, not cuda; 6 rounds")


def test_settings_that_agree_on_an_exact_figure_are_one_line(tmp_path: Path) -> None:
    for day, (name, held) in enumerate([("one", 4e8), ("two", 5e8), ("three", 4e8), ("four", 4e8)]):
        environment = {**ENVIRONMENT, "device": {**DEVICE, "name": name}}
        run(tmp_path / "x" / f"2026010{day}T000000Z_m_c", [record("arm", held=held, environment=environment)])
    held, nll = claim("held_memory(arm)"), claim("nll(arm)")
    found = ledger([entry(held)], published(tmp_path))
    assert [(one.value, one.reason) for one in found] == [(4e8, "exact, and so in 2 more settings"), (5e8, "exact")]
    assert found[0].run is not None
    assert found[0].run.name.startswith("20260103"), "the newest of them"
    # each of four measurements with an interval is evidence
    assert len(ledger([entry(nll)], published(tmp_path))) == 4


def test_settings_that_say_nothing_are_one_line(tmp_path: Path) -> None:
    for number, context in enumerate((512, 1024, 2048)):
        arms = [record(name, workload={"name": "w", "parameters": {"items": context}}) for name in ("base", "arm")]
        run(tmp_path / "e" / f"2026112{number}T000000Z_m_c", arms)
    asked = claim(needs={"workload.items": ">=5000"})
    (found,) = ledger([entry(asked)], published(tmp_path))
    assert found.outcome is Outcome.UNTESTABLE
    assert found.reason == "workload.items is 2048, not >=5000; 2 more settings say nothing either"


def test_a_figure_without_an_interval_is_not_an_exact_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        environment = {**ENVIRONMENT, "device": {**DEVICE, "name": name}}
        arms = [record("base", seconds=2.0, rounds=1), record("arm", seconds=1.0, rounds=1)]
        run(tmp_path / "x" / name, [{**arm, "environment": environment} for arm in arms])
    found = ledger([entry(claim())], published(tmp_path))
    assert [(one.value is not None, one.low) for one in found] == [(True, None)] * 2


def test_a_damaged_run_is_left_out(tmp_path: Path) -> None:
    run(tmp_path / "x" / "1", [record("base", seconds=2.0), record("arm", seconds=1.0)])
    (tmp_path / "x" / "2").mkdir()
    (tmp_path / "x" / "2" / "manifest.json").write_text("{")
    (found,) = ledger([entry(claim())], published(tmp_path))
    assert found.outcome is Outcome.REPRODUCED


def test_only_a_whole_run_of_this_config_in_this_environment_is_used_again(tmp_path: Path) -> None:
    made = run(tmp_path / "x" / "1", [record("base"), record("arm")])
    again = trial.stored(tmp_path, "x", "c", ENVIRONMENT)
    assert again is not None
    assert again.folder == made.folder
    assert trial.stored(tmp_path, "x", "another", ENVIRONMENT) is None
    assert trial.stored(tmp_path, "x", "c", {**ENVIRONMENT, "versions": {"torch": "2.1"}}) is None
    # what cannot be published does not stand for it, but a quick run where one is wanted
    for stamp in ("quick", "dirty", "disturbed"):
        run(tmp_path / stamp / "x" / "2", [record("base"), record("arm")])
    found = [trial.stored(tmp_path, "x", "c", ENVIRONMENT, quick=quick) for quick in (False, True)]
    assert [one.folder.parent.parent.name for one in found if one] == [tmp_path.name, "quick"]
    made.forget("c.arm.seed0")
    assert trial.stored(tmp_path, "x", "c", ENVIRONMENT) is None


def test_pages_escape_all_text(tmp_path: Path) -> None:
    nasty = "<script>x</script> [a](javascript:b) | **c** `d`\n# e"
    asked = claim(statement=nasty, source=nasty, expected=Expected(1, 2))
    page = shown.as_markdown(
        [Finding(nasty, asked, Outcome.HOLDS, nasty, 1.0, 1.0, 1.0, nasty, tmp_path / "r")], tmp_path
    )
    assert "<script" not in page
    assert re.search(r"(?<!\\)\]\(", page) is None
    assert "**c" not in page
    assert "\n# e" not in page
    assert page.count("\\[a\\](javascript:b)") == 5


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["verify", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_prints_the_ledger_and_draws_the_page_only_for_all(tmp_path: Path) -> None:
    assert "NOT TESTABLE HERE" in call("mezo", "--out", str(tmp_path))
    assert not (tmp_path / "claims.md").exists()
    events = [json.loads(line) for line in call("--out", str(tmp_path), "--json").splitlines()]
    assert {event["verdict"] for event in events} == {"NOT TESTABLE HERE"}
    assert all(event["value"] is None and event["reason"] for event in events)
    page = (tmp_path / "claims.md").read_text()
    assert all(f"## {name}" in page for name in ("qlora", "speculative", "dpo"))
    assert page.count("NOT TESTABLE HERE.") == len(events)


def test_what_says_how_to_run_is_refused_without_a_run_and_handed_on_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--draft"):
        CliRunner().invoke(cli.app, ["verify", "--draft", "d"], catch_exceptions=False)
    asked: dict[str, object] = {}

    def stored(*arguments: object, **wanted: object) -> Run:
        asked.update(wanted)
        return Run(tmp_path)

    monkeypatch.setattr("bench.trial.run", stored)
    call("speculative", "--run", "--draft", "my-draft", "--quick", "--out", str(tmp_path))
    assert asked == {"model": None, "draft": "my-draft", "device": None, "quick": True, "max_time": None}
