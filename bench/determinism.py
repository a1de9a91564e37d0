"""The same seed twice: which arms give the same figures again, which nearly, which not, and what makes them differ.

Every arm goes through the quality pass in two fresh processes, from the same inputs and with the same seed. Nothing
is timed, so the machine-wide lock is not taken; a run that is timing meanwhile sees the load and repeats its bursts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import kept, model_names
from bench.difference import BOUND, DIFFERENT, EQUAL, WITHIN, Difference, compare, compared
from bench.experiment import Arm, Comparison, Experiment
from bench.process import CellFailure, Worker
from bench.runner import Say
from bench.workers import Workers

KIND = "determinism"
"""Names its reports in the user's cache."""
NOT_RUN = "not run"
ANSWERS = EQUAL, WITHIN, DIFFERENT, NOT_RUN
NOT_FOUND = "not found"


@dataclass(frozen=True)
class Change:
    """One thing that a pair of runs does otherwise, to find out what made another pair differ."""

    name: str = ""
    meaning: str = ""
    """What made the pair differ, if this change makes it equal."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


CHANGES = (
    Change("threads", "reductions are summed in another order", {"threads": 1}),
    # cuBLAS keeps to one order of summation only with workspaces of its own; read when CUDA starts
    Change("kernels", "non-deterministic kernels", {"deterministic": True}, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
)
"""Tried one at a time and in this order. One pair that became equal is evidence of the cause, not proof."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended, what of it is compared, and the worker's answer."""

    status: str
    reason: str = ""
    compared: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)


Act = Callable[[Worker], Outcome]


class Examination:
    """One experiment's comparisons, each arm twice."""

    def __init__(
        self,
        experiment: Experiment,
        facts: Mapping[str, Any],
        say: Say = lambda event: None,
        plugins: tuple[str, ...] = (),
    ) -> None:
        self.experiment = experiment
        self.settings = experiment.settings
        self.seed = experiment.settings.seeds[0]
        self.facts = facts
        self.say = say
        self.workers = Workers(experiment.settings, facts, plugins)

    def go(self) -> dict[str, Any]:
        """The report: what it was made on, and a row per `build` and per arm."""
        model_names.ensure(self.experiment.models, lambda line: self.say({"event": "note", "text": line}))
        rows = []
        for comparison in self.experiment.comparisons:
            for row in self._comparison(comparison):
                self.say({"event": "row", **row})
                rows.append(row)
        return {
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "experiment": self.settings.name,
            "config_sha256": self.experiment.hash,
            **{name: self.facts[name] for name in ("device", "versions", "code")},
            "threads": self.facts["cpu"]["threads"],
            "seed": self.seed,
            "bound": BOUND,
            "rows": rows,
        }

    def _comparison(self, comparison: Comparison) -> Iterator[dict[str, Any]]:
        head = {"comparison": comparison.id, "family": comparison.family, "model": comparison.model}

        def build(worker: Worker) -> Outcome:
            self.workers.open(worker, comparison, self.seed, None)
            answer = worker.ask("build", self.settings.cell_timeout)
            return Outcome("ok", compared={"built": answer["built"]}, answer=answer)

        # what arms share is known by its content hash: nearly equal is another one
        first, row = self._twice(comparison, None, build, bound=0.0)
        yield {**head, "arm": None, **row}
        inputs = first.answer.get("built")
        reference = None
        for arm in comparison.arms:
            if inputs is None:
                yield {**head, "arm": arm.label, **_row([first] * 2, BOUND), "reason": f"build: {first.reason}"}
                continue
            first_of_arm, row = self._twice(comparison, arm, self._quality(comparison, arm, inputs, reference))
            if arm is comparison.baseline:
                reference = first_of_arm.answer.get("quality")
            yield {**head, "arm": arm.label, **row}

    def _quality(self, comparison: Comparison, arm: Arm, inputs: Any, reference: Any) -> Act:
        limit = self.settings.cell_timeout

        def quality(worker: Worker) -> Outcome:
            self.workers.open(worker, comparison, self.seed, {"built": inputs})
            self.workers.prepare(worker, arm)
            answer = worker.ask("quality", limit, arm=arm.label, reference=reference)
            worker.ask("close", limit, arm=arm.label)
            return Outcome("ok", compared=compared(answer["quality"]), answer=answer)

        return quality

    def _twice(
        self, comparison: Comparison, arm: Arm | None, act: Act, bound: float = BOUND
    ) -> tuple[Outcome, dict[str, Any]]:
        """The first of two runs, and how they compare; where they are not equal, also why."""
        name = arm.label if arm else None
        self.say({"event": "stage", "comparison": comparison.id, "arm": name, "change": None})
        outcomes = self._pair(comparison, act, Change())
        row = _row(outcomes, bound)
        if row["answer"] in {WITHIN, DIFFERENT}:
            row["cause"] = NOT_FOUND
            for change in CHANGES:
                self.say({"event": "stage", "comparison": comparison.id, "arm": name, "change": change.name})
                if _row(self._pair(comparison, act, change), bound)["answer"] == EQUAL:
                    row["cause"] = f"{change.name}: {change.meaning}"
                    break
        return outcomes[0], row

    def _pair(self, comparison: Comparison, act: Act, change: Change) -> list[Outcome]:
        setting = {**self.workers.setting(comparison), **change.setting}
        outcomes = []
        with ExitStack() as stack:
            # both import at the same time, then they work one after the other: memory need hold only one
            workers = [stack.enter_context(Worker(setting, dict(change.environment))) for _ in range(2)]
            for worker in workers:
                try:
                    outcomes.append(act(worker))
                except CellFailure as failure:
                    outcomes.append(Outcome(failure.status, failure.reason))
                worker.end()
        return outcomes


def _row(outcomes: list[Outcome], bound: float) -> dict[str, Any]:
    first, second = outcomes
    difference = compare(
        {"status": first.status, **first.compared}, {"status": second.status, **second.compared}, bound
    )
    if first.status == second.status != "ok":
        difference = Difference(NOT_RUN, relative=None)
    return {
        **asdict(difference),
        "status": first.status if first.status != "ok" else second.status,
        "reason": first.reason or second.reason,
        "sha256": [outcome.answer.get("sha256") for outcome in outcomes],
        "cause": "",
    }


def exit_code(report: Mapping[str, Any]) -> int:
    """1 if anything is different, 3 if an arm did not finish, else 0."""
    if any(row["answer"] == DIFFERENT for row in report["rows"]):
        return 1
    return 3 if any(row["status"] not in {"ok", "unsupported"} for row in report["rows"]) else 0


def keep(report: Mapping[str, Any]) -> None:
    """Store a report in the user's cache, in place of the one of the same device, dtype and versions.

    Raises:
        StoreError: the cache cannot be written.
    """
    kept.keep(KIND, report)


def known(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored report of this device, dtype and these versions; None if there is none."""
    return kept.known(KIND, facts)
