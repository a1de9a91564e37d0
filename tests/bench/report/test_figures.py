"""The numbers behind every figure, and that nothing withheld is among them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from bench import outcome
from bench.report import figures, plots


def drawings(records: list[dict[str, Any]]) -> dict[str, figures.Drawing]:
    return {one.name: one for comparison, rows in outcome.rows(records).items() for one in figures.of(comparison, rows)}


def test_a_scatter_holds_changes_with_their_intervals(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings([make("base"), make("fast", tpot=0.05)])["decoding.chat.quality-latency"]
    base, fast = found.lines
    assert (base["tpot"], base["output_nll"], base["tpot_low"]) == (1.0, 0.0, None)
    assert fast["tpot_low"] < fast["tpot"] < fast["tpot_high"] < 0.6
    assert fast["output_nll_low"] < fast["output_nll"] < fast["output_nll_high"]
    assert found.x == "tpot, ratio to base, lower is better"
    assert found.y == "output_nll [nat/token], difference from base, lower is better"
    assert "some-model (1.5B parameters) on Test CPU" in found.subject
    assert [row["arm"] for row in csv.DictReader(io.StringIO(found.csv))] == ["base", "fast"]


def test_the_front_holds_whom_no_other_arm_beats(make: Callable[..., dict[str, Any]]) -> None:
    arms = [make("base", nll=2.0), make("fast", tpot=0.05, nll=2.5), make("bad", tpot=0.2, nll=3.0)]
    found = drawings(arms)["decoding.chat.quality-latency"]
    assert {line["arm"]: line["on_front"] for line in found.lines} == {"base": True, "fast": True, "bad": False}


def test_the_front_knows_which_way_is_better(make: Callable[..., dict[str, Any]]) -> None:
    primary = {"quality": "token_agreement", "latency": "tpot", "memory": "peak_memory"}
    arms = [make("base", primary=primary), make("fast", tpot=0.05, primary=primary)]
    for record, share in zip(arms, (0.9, 0.5), strict=True):
        record["quality"]["metrics"] = {"token_agreement": [share] * 20}
    assert all(line["on_front"] for line in drawings(arms)["decoding.chat.quality-latency"].lines)


def test_a_peak_is_made_of_its_parts_and_what_they_leave(make: Callable[..., dict[str, Any]]) -> None:
    found = drawings([make("base", peak=1e9)])["decoding.chat.memory"]
    assert [line["component"] for line in found.lines] == ["runtime", "weights", "activations", "not explained"]
    assert sum(line["bytes"] for line in found.lines) == found.lines[0]["peak_bytes"]
    assert "base: 1 GB, of which runtime 300 MB" in found.words


def test_a_record_without_parts_shows_its_components(make: Callable[..., dict[str, Any]]) -> None:
    record = make("base")
    for part in record["rounds"]:
        part["memory"] = {
            "peak": 100,
            "reserved": None,
            "named": 40,
            "largest": {},
            "components": {"weights": 40, "optimizer": 0},
            "runtime": 50,
            "rest": 10,
        }
    lines = drawings([record])["decoding.chat.memory"].lines
    assert {line["component"]: line["bytes"] for line in lines} == {"runtime": 50, "weights": 40, "not explained": 10}


def test_curves_are_those_of_every_seed_and_of_failed_runs(records: list[dict[str, Any]]) -> None:
    found = drawings(records)["finetuning.text.loss"]
    assert list(dict.fromkeys(line["arm"] for line in found.lines)) == [
        "base (seed 0)",
        "base (seed 1)",
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
            record["quality"]["curves"]["reward"] = [[0.0, 0.1], [4.0, 0.3]]
            record["quality"]["half_widths"] = {"reward": [[None, 0.05], [None, 0.25]]}
    timed = {row.arm: row.estimates["time_per_step"].value for row in outcome.rows(records)["finetuning.text"][:2]}
    found = drawings(records)["finetuning.text.reward_over_seconds"]
    assert (found.x, found.y, found.title) == ("seconds", "reward", "Reward by seconds")
    assert len(set(timed.values())) == 2
    for line in found.lines:
        arm = found.arms[line["arm"]]
        assert line["seconds"] == pytest.approx(0 if line["reward"] == 0.1 else 4 * timed[arm])
    assert found.lines[1]["reward_high"] == pytest.approx(0.55)


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


def test_who_is_not_drawn_is_named(records: list[dict[str, Any]]) -> None:
    found = drawings(records)
    named = ("wrong: INVALID", "broken: failed", "elsewhere: unsupported")
    for name in ("quality-memory", "quality-latency", "memory"):
        drawing = found[f"decoding.chat.{name}"]
        assert drawing.left_out == named
        assert not {"wrong", "broken", "elsewhere"} & {line["arm"] for line in drawing.lines}
    random = found["decoding.shapes.quality-latency"]
    assert random.missing
    assert random.left_out == tuple(f"{arm}: not applicable: random weights" for arm in ("base", "fast"))


@pytest.mark.parametrize("reason", ["", "no /proc here"])
def test_memory_that_was_not_measured_says_so(make: Callable[..., dict[str, Any]], reason: str) -> None:
    record = make("base")
    for part in record["rounds"]:
        part["memory"] = {"peak": None, "reserved": None, "named": 1, "largest": {}, "reason": reason}
    found = drawings([record])["decoding.chat.memory"]
    assert found.missing == "no arm's memory was measured"
    assert found.left_out == (f"base: not measured{', no /proc here' if reason else ''}",)
