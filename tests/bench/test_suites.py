from __future__ import annotations

from typing import Any

import pytest

from bench import experiment, plan, suites
from bench.errors import UsageError


def test_names() -> None:
    assert {"cpu", "smoke", "decoding", "kv_cache", "finetuning", "preference", "gpu/default"} <= set(suites.named())


def test_nothing_means_this_machines_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "resolve_device", lambda wanted: "cpu")
    assert suites.find([])[0]["name"] == "cpu"
    monkeypatch.setattr(suites, "resolve_device", lambda wanted: "cuda")
    monkeypatch.setattr(suites.model_names, "at_hand", lambda name: True)
    assert suites.find([])[0]["name"] == "gpu"
    monkeypatch.setattr(suites.model_names, "at_hand", lambda name: False)
    assert suites.find([])[0]["name"] == "gpu_offline"


def test_a_technique_comes_with_its_baseline_and_workload() -> None:
    raw, _ = suites.find(["dpo"])
    assert raw["name"] == "dpo"
    family, _ = suites.find(["preference"])
    # with the parameters that the family's config has tried
    assert raw["comparisons"][0]["arms"] == family["comparisons"][0]["arms"][:2]
    assert [arm["technique"] for arm in raw["comparisons"][0]["arms"]] == ["sft_on_chosen", "dpo"]
    assert suites.find(["kto"])[0]["comparisons"][0]["arms"][1] == "kto"
    assert suites.find(["autoregressive"])[0]["comparisons"][0]["arms"] == ["autoregressive"]


def test_several_techniques_of_one_family_share_a_comparison() -> None:
    raw, _ = suites.find(["prompt_lookup", "prompt_lookup_short", "kto"])
    assert [block["arms"] for block in raw["comparisons"]] == [
        ["autoregressive", "prompt_lookup", "prompt_lookup_short"],
        [{"technique": "sft_on_chosen", "learning_rate": 1.0e-3}, "kto"],
    ]


RAW: dict[str, Any] = {
    "name": "x",
    "comparisons": [
        {"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]},
        {"workload": {"name": "embedded_text", "items": 3}, "arms": ["full", {"technique": "lora", "rank": 4}]},
    ],
}


def test_set_finds_its_owner() -> None:
    raw = suites.override(
        RAW, ["replicates=3", "prompt_lookup.ngram=2", "lora.rank=8", "workload.items=5", "embedded_text.steps=7"]
    )
    assert raw["replicates"] == 3
    first, second = raw["comparisons"]
    assert first["arms"][1] == {"technique": "prompt_lookup", "ngram": 2}
    assert second["arms"][1] == {"technique": "lora", "rank": 8}
    assert (first["workload"]["items"], second["workload"]["items"], second["workload"]["steps"]) == (5, 5, 7)
    assert RAW["comparisons"][0]["workload"] == "grounded_chat", "the original is left alone"


def test_what_the_command_line_says_holds_in_every_comparison() -> None:
    own = {**RAW, "comparisons": [{**RAW["comparisons"][0], "bursts": 6}, RAW["comparisons"][1]]}
    assert [one.bursts for one in experiment.check(own, "x").comparisons] == [6, 2]
    raw = suites.override(own, ["bursts=4"])
    assert [one.bursts for one in experiment.check(raw, "x").comparisons] == [4, 4]
    assert [one.bursts for one in experiment.check({**own, "quick": True}, "x").comparisons] == [1, 1]


def test_a_list_is_an_axis() -> None:
    raw = suites.override(RAW, ["new_tokens=8,16"])
    assert raw["comparisons"][0]["workload"]["new_tokens"] == [8, 16]
    assert len(experiment.check(raw, "x").comparisons) == 3


def test_a_comparison_may_have_a_model_of_its_own() -> None:
    raw = {**RAW, "model": "tiny:llama"}
    raw["comparisons"] = [{**RAW["comparisons"][0], "model": "tiny:gpt2"}, RAW["comparisons"][1]]
    assert [one.model for one in experiment.check(raw, "x").comparisons] == ["tiny:gpt2", "tiny:llama"]
    everywhere = suites.retarget(raw, "tiny:qwen3")
    assert {one.model for one in experiment.check(everywhere, "x").comparisons} == {"tiny:qwen3"}


@pytest.mark.parametrize("wrong", ["nothing=1", "dpo.beta=1", "workload.nothing=1", "lora.rnk=3"])
def test_set_that_means_nothing(wrong: str) -> None:
    with pytest.raises(UsageError, match="nothing in this config has it"):
        suites.override(RAW, [wrong])


@pytest.mark.parametrize("key", ["preference.continuation.items", "workload.itms"])
def test_what_was_meant_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=r"nothing in this config has it; did you mean 'workload\.items'\?$"):
        suites.override({"comparisons": [{"workload": "continuation_pairs", "arms": ["dpo"]}]}, [f"{key}=3"])


@pytest.mark.parametrize("name", ["cpu", "smoke"])
def test_default_suites_keep_their_limits(name: str) -> None:
    checked = experiment.check(suites.find([name])[0], name)
    limit = {"cpu": 20 * 60, "smoke": 3 * 60}[name]
    assert checked.settings.max_time <= max(limit, 300)
    assert plan.total(checked, "cpu", "bfloat16") <= limit
    families = {one.family for one in checked.comparisons}
    assert families == {"decoding", "kv_cache", "finetuning", "preference"}


def test_first_results_of_the_cpu_suite_come_within_five_minutes() -> None:
    checked = experiment.check(suites.find(["cpu"])[0], "cpu")
    first = checked.comparisons[0].id
    assert sum(s.total for s in plan.stages(checked, "cpu", "bfloat16") if s.comparison == first) <= 5 * 60


def test_a_plan_beyond_its_limit_is_refused() -> None:
    raw = {**suites.find(["cpu"])[0], "max_time": "2m"}
    with pytest.raises(UsageError, match="raise it with --max-time"):
        plan.check(experiment.check(raw, "x"), "cpu", "bfloat16")


def test_a_hub_models_work_is_unknown_not_zero() -> None:
    raw = {**RAW, "model": "some/model"}
    stages = list(plan.stages(experiment.check(raw, "x"), "cuda", "bfloat16"))
    assert all(stage.work is None for stage in stages)


@pytest.mark.parametrize(("name", "minutes"), [("sentiment", 52), ("sentiment_small", 17), ("dpo_peer", 12)])
def test_preference_configs_keep_their_limits(name: str, minutes: int) -> None:
    checked = experiment.check(suites.find([name])[0], name)
    assert plan.total(checked, "cpu", "bfloat16") <= minutes * 60


def test_a_plan_counts_what_training_costs_each_arm() -> None:
    def quality(arm: dict[str, object]) -> float:
        raw = {"name": "x", "comparisons": [{"workload": "continuation_pairs", "arms": ["sft_on_chosen", arm]}]}
        *_, stage, _ = plan.stages(experiment.check(raw, "x"), "cpu", "bfloat16")
        assert stage.work is not None
        return stage.work

    known, live = (quality({"technique": "dpo", "reference": way}) for way in ("precomputed", "adapters_off"))
    assert live > known  # a forward pass more in every step
    assert quality({"technique": "dpo", "reference": "copy", "policy": "full"}) > live  # gradients of all weights


def test_comparisons_with_baselines_of_their_own_stay_apart() -> None:
    peers = suites.find(["dpo_peer"])[0]["comparisons"]
    assert [one["baseline"] for one in peers] == ["trl_dpo", "trl_precomputed"]
    assert [len(one["arms"]) for one in peers] == [2, 2]


def test_a_plan_ends_a_training_where_its_time_budget_does() -> None:
    def planned(budget: float) -> list[float | None]:
        workload = {"name": "controlled_sentiment", "time_budget": budget}
        raw = {"name": "x", "comparisons": [{"workload": workload, "arms": ["sft_on_chosen", "ppo"]}]}
        return [stage.work for stage in plan.stages(experiment.check(raw, "x"), "cpu", "bfloat16")]

    (build, short, timing), (same_build, whole, same_timing) = planned(1.8), planned(0.0)
    assert short < whole  # type: ignore[operator]
    assert (build, timing) == (same_build, same_timing)  # a timed step is as long as ever


def test_a_context_that_is_read_once_is_planned_so() -> None:
    def timing(**workload: object) -> float:
        asked = {"name": "long_document", "context": 2048, "timed_contexts": 1, **workload}
        raw = {"name": "x", "bursts": 10, "comparisons": [{"workload": asked, "arms": ["full_cache"]}]}
        *_, stage = plan.stages(experiment.check(raw, "x"), "cpu", "bfloat16")
        assert stage.work is not None
        return stage.work

    # twelve readings a round, or those of the warm-up and the memory pass
    assert timing(new_tokens=2) / timing(new_tokens=2, read_once=True) == pytest.approx(6, rel=0.2)


def test_what_a_gpu_is_to_run_at_32k_fits_its_time() -> None:
    checked = experiment.check(*suites.find(["gpu/kv_32k"]))
    assert [one.workload.model_dump()["batch"] for one in checked.comparisons] == [1, 4, 16]
    assert plan.total(checked, "cuda", "bfloat16") < 3 * 3600
