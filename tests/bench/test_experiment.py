from __future__ import annotations

from typing import Any

import pytest

from bench import experiment, settings
from bench.errors import ConfigError
from bench.workers import Workers


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": "tiny:llama",
        "comparisons": [{"workload": "grounded_chat", "arms": ["autoregressive", "prompt_lookup"]}],
        **changes,
    }


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        experiment.check(raw, "x.yaml")
    return [str(problem) for problem in error.value.problems]


def test_every_mistake_at_once() -> None:
    found = problems(
        {
            "name": "No Good",
            "model": "tiny:lama",
            "replicates": 0,
            "max_time": "20 parsecs",
            "replicate": 3,
            "comparisons": [
                {"workload": "grounded_cat", "arms": ["autoregressiv"]},
                {"workload": {"name": "grounded_chat", "itms": 3, "new_tokens": 0}, "arms": [{"technique": "full"}]},
                {"workload": "grounded_chat", "arms": ["prompt_lookup"]},
                {"workload": "grounded_chat", "arms": ["autoregressive", {"technique": "prompt_lookup", "ngram": 99}]},
                {"workload": "grounded_chat", "arms": []},
                "what",
                {"workload": "grounded_chat", "arms": ["autoregressive"], "bursts": 0},
            ],
        }
    )
    expected = [
        "name: 'No Good'",
        "replicates: 0: input should be greater than or equal to 1",
        "max_time: '20 parsecs': '20 parsecs' is no duration",
        "replicate: unknown parameter; did you mean 'replicates'?",
        "model: unknown model 'tiny:lama'; did you mean 'tiny:llama'?",
        "comparisons[0].workload: unknown workload 'grounded_cat'; did you mean 'grounded_chat'?",
        "comparisons[0].arms[0]: unknown technique 'autoregressiv'; did you mean 'autoregressive'?",
        "comparisons[1].workload.itms: unknown parameter; did you mean 'items'?",
        "comparisons[1].workload.new_tokens: 0: input should be greater than or equal to 2",
        "comparisons[2].arms: no baseline among the arms",
        "comparisons[3].arms[1].ngram: 99: input should be less than or equal to 16",
        "comparisons[4].arms: a list of at least one technique",
        "comparisons[5]: a mapping",
        "comparisons[6].bursts: 0: a number from 1 to 100",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)


def test_technique_of_another_family() -> None:
    raw = config(comparisons=[{"workload": "grounded_chat", "arms": ["autoregressive", "lora"]}])
    assert "'lora' is a technique of the family finetuning" in problems(raw)[0]


def test_a_list_spans_an_axis_and_the_baseline_comes_first() -> None:
    arms = [{"technique": "prompt_lookup", "ngram": [2, 3]}, "autoregressive"]
    workload = {"name": "grounded_chat", "new_tokens": [8, 16]}
    checked = experiment.check(config(comparisons=[{"workload": workload, "arms": arms}]), "x")
    assert [one.id for one in checked.comparisons] == ["decoding.grounded_chat", "decoding.grounded_chat-2"]
    assert [arm.label for arm in checked.comparisons[0].arms] == [
        "autoregressive",
        "prompt_lookup(ngram=2)",
        "prompt_lookup(ngram=3)",
    ]
    assert len({cell.id for cell in checked.cells()}) == 6


def test_presets_and_labels() -> None:
    arms = ["autoregressive", "prompt_lookup_short", {"technique": "prompt_lookup", "label": "mine", "draft_tokens": 5}]
    checked = experiment.check(config(comparisons=[{"workload": "grounded_chat", "arms": arms}]), "x")
    _, short, mine = checked.comparisons[0].arms
    assert (short.name, short.technique.model_dump()["draft_tokens"]) == ("prompt_lookup", 3)
    assert (mine.label, mine.technique.model_dump()["draft_tokens"]) == ("mine", 5)


def test_equal_labels_are_refused() -> None:
    arms = ["autoregressive", "prompt_lookup", {"technique": "prompt_lookup", "ngram": 2}]
    assert (
        "two arms are called 'prompt_lookup'"
        in problems(config(comparisons=[{"workload": "grounded_chat", "arms": arms}]))[0]
    )


def test_quick_is_smaller_and_never_larger() -> None:
    workload = {"name": "grounded_chat", "items": 1}
    raw = config(quick=True, comparisons=[{"workload": workload, "arms": ["autoregressive"]}])
    checked = experiment.check(raw, "x")
    assert checked.settings.inline
    assert checked.settings.replicates == 1
    assert checked.comparisons[0].workload.items == 1
    assert checked.comparisons[0].workload.new_tokens < 32


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400), (7, 7)])
def test_durations(text: str | float, expected: float) -> None:
    assert settings.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0s", "-3m", "1d", "m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        settings.seconds(text)


def test_hash_depends_on_content_not_on_order() -> None:
    raw = config()
    assert experiment.check(raw, "a").hash == experiment.check(dict(reversed(raw.items())), "b").hash
    assert experiment.check(raw, "a").hash != experiment.check(config(seeds=[1]), "a").hash


def test_helper_networks_reach_the_workers_by_their_role() -> None:
    checked = experiment.check(config(draft="tiny:gpt2", reference="tiny:qwen3"), "x")
    assert checked.models == ["tiny:gpt2", "tiny:llama", "tiny:qwen3"]
    workers = Workers(checked.settings, {"device": {"kind": "cpu"}}, ())
    assert workers.setting(checked.comparisons[0])["others"] == {"draft": "tiny:gpt2", "reference": "tiny:qwen3"}
