"""Curves are those of every seed, averaged over the seeds where that says more, with the seeds as the unit."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from bench import outcome
from bench.report import figures, plots
from bench.report.drawing import Drawing


def drawings(records: list[dict[str, Any]]) -> dict[str, Drawing]:
    return {one.name: one for name, rows in outcome.rows(records).items() for one in figures.of(name, rows)}


def test_curves_are_those_of_every_seed_and_of_failed_runs(records: list[dict[str, Any]]) -> None:
    found = drawings(records)["finetuning.text.loss"]
    assert list(dict.fromkeys(line["arm"] for line in found.lines)) == [
        "base",
        "base (seed 0)",
        "base (seed 1)",
        "adapters",
        "adapters (seed 0)",
        "adapters (seed 1)",
        "diverged",
    ]
    assert "diverged: from 3 to 9" in found.words


def test_a_long_curve_is_thinned_and_says_so(make: Callable[..., dict[str, Any]]) -> None:
    record = make("base")
    record["quality"]["curves"] = {"reward_over_tokens": [[float(n), float(n)] for n in range(10_000)]}
    found = drawings([record])["decoding.chat.reward_over_tokens"]
    assert (found.x, found.y, found.title) == ("tokens", "reward", "Reward by tokens")
    assert len(found.lines) == 401
    assert found.lines[-1] == {"arm": "base", "tokens": 9999.0, "reward": 9999.0}
    assert found.note == "One point in 25 is drawn; the records hold all."


def test_a_line_that_is_no_arms_is_drawn_beside_them(make: Callable[..., dict[str, Any]]) -> None:
    base, other = make("base"), make("other")
    base["quality"]["curves"] = {
        "reward_over_kl": [[0.0, 0.1], [2.0, 0.3]],
        "reward_over_kl: best of n": [[0.0, 0.1], [0.2, 0.4]],
    }
    other["quality"]["curves"] = {"reward_over_kl": [[0.0, 0.1], [3.0, 0.6]]}
    found = drawings([base, other])["decoding.chat.reward_over_kl"]
    assert list(dict.fromkeys(line["arm"] for line in found.lines)) == ["base", "other", "best of n"]
    assert (found.x, found.y) == ("kl", "reward")
    assert {"arm": "best of n", "kl": 0.2, "reward": 0.4} in found.lines


def test_intervals_of_a_curve_stand_beside_its_points(make: Callable[..., dict[str, Any]]) -> None:
    base, other = make("base"), make("other")
    base["quality"]["curves"] = {
        "reward": [[0.0, 0.1], [4.0, 0.3]],
        "reward_over_kl": [[0.0, 0.1], [2.0, 0.3]],
        "reward_over_kl: best of n": [[0.0, 0.1]],
    }
    base["quality"]["half_widths"] = {
        "reward": [[None, 0.05], [None, 0.25]],
        "reward_over_kl": [[0.0, 0.05], [0.5, 0.25]],
    }
    other["quality"]["curves"] = {"reward": [[0.0, 0.4]]}
    found = drawings([base, other])
    first, last, oracle = found["decoding.chat.reward_over_kl"].lines
    assert first == pytest.approx(
        {"arm": "base", "kl": 0, "reward": 0.1, "kl_low": 0, "kl_high": 0, "reward_low": 0.05, "reward_high": 0.15}
    )
    assert (last["kl_low"], last["kl_high"]) == (1.5, 2.5)
    assert [oracle[f"{name}_{side}"] for name in ("kl", "reward") for side in ("low", "high")] == [None] * 4
    assert "95 % intervals" in found["decoding.chat.reward_over_kl"].note
    lines = found["decoding.chat.reward"].lines
    assert [line["reward_high"] for line in lines] == [pytest.approx(0.15), pytest.approx(0.55), None]
    assert "step_low" not in lines[0]
    assert plots.svg(found["decoding.chat.reward_over_kl"]).count("<path") > 0


def test_rewards_are_drawn_over_the_seconds_that_their_steps_take(records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["comparison"] == "finetuning.text" and record["quality"]:
            record["quality"]["curves"]["reward"] = [[0.0, 0.1], [4.0, 0.3 + 0.1 * record["seed"]]]
            record["quality"]["half_widths"] = {"reward": [[None, 0.05], [None, 0.25]]}
    timed = {row.arm: row.estimates["time_per_step"].value for row in outcome.rows(records)["finetuning.text"][:2]}
    found = drawings(records)["finetuning.text.reward_over_seconds"]
    assert (found.x, found.y, found.title) == ("seconds", "reward", "Reward by seconds")
    assert len(set(timed.values())) == 2
    for line in found.lines:
        arm = found.arms[line["arm"]]
        assert line["seconds"] == pytest.approx(0 if line["reward"] == 0.1 else 4 * timed[arm])
    # t with 1 degree of freedom, over two seeds that are 0.1 apart
    assert found.lines[1]["reward_high"] == pytest.approx(0.35 + 12.7062 * 0.05, abs=1e-4)


def test_an_arm_whose_step_has_no_time_is_not_drawn_over_seconds(make: Callable[..., dict[str, Any]]) -> None:
    record = make("base")
    record["quality"]["curves"] = {"reward": [[0.0, 0.1], [4.0, 0.3]]}
    assert "decoding.chat.reward_over_seconds" not in drawings([record])


def test_seeds_of_an_arm_share_a_line_of_the_legend(records: list[dict[str, Any]]) -> None:
    found = drawings(records)["finetuning.text.loss"]
    assert list(dict.fromkeys(found.arms.values())) == ["base", "adapters", "diverged"]
    drawn = plots.svg(found)
    for name in ("base", "adapters", "diverged"):
        assert len(re.findall(rf">{name}<", drawn)) == 1
    assert "seed 0" not in drawn.partition("</desc>")[2]


def seeds_of(
    make: Callable[..., dict[str, Any]], rewards: list[float], kls: list[float], width: float = 0.01
) -> list[dict[str, Any]]:
    """One arm whose seeds end at these rewards and divergences, each looked at on items that hardly vary."""
    found = []
    for seed, (reward, kl) in enumerate(zip(rewards, kls, strict=True)):
        record = make("base", seed=seed, cell=f"decoding.chat.base.seed{seed}")
        record["quality"] = {
            **record["quality"],
            "curves": {
                "reward": [[0.0, 0.1], [8.0, reward]],
                "reward_over_kl": [[0.0, 0.1], [kl, reward]],
                "loss": [[0.0, 1.0], [1.0, reward]],
            },
            "half_widths": {
                "reward": [[None, width], [None, width]],
                "reward_over_kl": [[0.0, width], [width, width]],
            },
        }
        found.append(record)
    return found


def test_points_of_several_seeds_have_intervals_over_the_seeds(make: Callable[..., dict[str, Any]]) -> None:
    rewards, kls = [0.2, 0.4, 0.9], [1.0, 2.0, 6.0]
    found = drawings(seeds_of(make, rewards, kls))["decoding.chat.reward_over_kl"]
    end = [line for line in found.lines if line["arm"] == "base"][-1]
    # t with 2 degrees of freedom; items as alike as these would give 0.01
    for name, values in (("reward", rewards), ("kl", kls)):
        half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
        assert end[name] == pytest.approx(statistics.fmean(values))
        assert end[f"{name}_high"] - end[name] == pytest.approx(half, rel=1e-5)
        assert end[name] - end[f"{name}_low"] == pytest.approx(half, rel=1e-5)
    single = [line for line in found.lines if line["arm"] != "base"]
    assert [line["reward"] for line in single] == [0.1, 0.2, 0.1, 0.4, 0.1, 0.9]
    assert all(line["reward_low"] is line["kl_high"] is None for line in single)
    assert "the unit" in found.note
    assert "over the items" not in found.note
    assert found.words == "base: from 0.1 to 0.5."


def test_items_that_vary_do_not_widen_what_the_seeds_agree_on(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings(seeds_of(make, [0.5] * 3, [1.0] * 3, width=9.0))["decoding.chat.reward"]
    end = [line for line in found.lines if line["arm"] == "base"][-1]
    assert end["reward_low"] == end["reward_high"] == 0.5
    assert "step_low" not in end, "a step is no estimate"


def test_losses_have_a_mean_without_intervals(make: Callable[..., dict[str, Any]]) -> None:
    records = seeds_of(make, [0.2, 0.4], [1.0, 2.0])
    records[0]["quality"]["curves"]["loss"].append([2.0, 9.0])  # this seed was trained for longer
    lines = drawings(records)["decoding.chat.loss"].lines
    mean = [(line["step"], line["loss"]) for line in lines if line["arm"] == "base"]
    assert mean == [(0.0, 1.0), (1.0, pytest.approx(0.3))]
    assert set(lines[0]) == {"arm", "step", "loss"}


def test_seeds_that_were_not_looked_at_equally_often_stay_apart(make: Callable[..., dict[str, Any]]) -> None:
    records = seeds_of(make, [0.2, 0.4], [1.0, 2.0])
    del records[1]["quality"]["curves"]["reward_over_kl"][0], records[1]["quality"]["half_widths"]["reward_over_kl"][0]
    found = drawings(records)["decoding.chat.reward_over_kl"]
    assert {line["arm"] for line in found.lines} == {"base (seed 0)", "base (seed 1)"}
    assert "each of one trained model" in found.note


def test_many_arms_are_drawn_without_their_single_seeds(make: Callable[..., dict[str, Any]]) -> None:
    records = [
        {**record, "arm": arm, "cell": f"decoding.chat.{arm}.seed{record['seed']}"}
        for arm in ("base", "b", "c", "d", "e")
        for record in seeds_of(make, [0.2, 0.4], [1.0, 2.0])
    ]
    few, many = (drawings(some)["decoding.chat.reward_over_kl"] for some in (records[:4], records))
    assert (len(few.arms), len(many.arms)) == (6, 5)
    assert "Thin lines" in few.note
    assert "Thin lines" not in many.note
    assert len({line["arm"] for line in many.lines}) == 15, "the CSV has them all"
    assert few.title == "Reward by KL divergence"
    assert plots.svg(many).count("base<") == 1


def test_a_bar_far_longer_than_the_points_are_apart_does_not_squeeze_them(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings(seeds_of(make, [0.2, 0.3], [1.0, 2.0]))["decoding.chat.reward_over_kl"]
    highest = max(line["reward_high"] or 0.0 for line in found.lines)
    assert highest > 0.8, "t with 1 degree of freedom"
    low, high = plots._limits(found.lines, "reward")
    assert 0.3 < high < 0.5
    assert low < 0.1
    # a bar that fits is seen whole
    found = drawings(seeds_of(make, [0.2, 0.21, 0.2], [1.0, 1.0, 1.1]))["decoding.chat.reward_over_kl"]
    assert plots._limits(found.lines, "reward")[1] > max(line["reward_high"] or 0.0 for line in found.lines)
    assert plots.svg(found).count("base<") == 1
