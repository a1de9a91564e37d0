"""Runs an experiment: builds what arms share, scores them, times them in turn, and alone moves records into place.

Quality comes first, one process per arm and seed; an arm that fails there costs no timing. Then rounds: the arms'
processes live side by side and serve short bursts in turn, in a seeded order that is mirrored every second time
(A B B A). Where they do not fit in memory together they take turns as whole processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from bench import outcome, record
from bench.experiment import Cell, Comparison, Experiment
from bench.probes import load
from bench.process import CellFailure, Worker
from bench.store import Run
from bench.worker import WARMUP
from bench.workers import Workers

TRIES = 3
"""A disturbed burst is repeated until it has been run this often."""
TOGETHER_SHARE = 0.8
"""The processes of a round live side by side if their peaks fit in this share of the memory available."""

Event = dict[str, Any]
Say = Callable[[Event], None]


class Runner:
    """One run of one experiment into one folder."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        environment: dict[str, Any],
        say: Say = lambda event: None,
        plugins: tuple[str, ...] = (),
    ) -> None:
        self.experiment = experiment
        self.settings = experiment.settings
        self.run = run
        self.environment = environment
        self.say = say
        self.workers = Workers(self.settings, environment, plugins)
        self.device: str = environment["device"]["kind"]
        self.deadline = time.monotonic() + self.settings.max_time

    def go(self) -> None:
        """Run what is not there yet, comparison by comparison."""
        shared: tuple[str, str] | None = None
        try:
            for comparison in self.experiment.comparisons:
                if shared != (comparison.family, comparison.model):
                    shared = comparison.family, comparison.model
                    self.workers.end()
                if any(not self.run.has(cell.id) for cell in self.experiment.cells(comparison)):
                    self._comparison(comparison)
                self.say({"event": "comparison", "comparison": comparison.id, "family": comparison.family})
        finally:
            self.workers.end()

    # one comparison

    def _comparison(self, comparison: Comparison) -> None:
        pending = [c for c in self.experiment.cells(comparison) if not self.run.has(c.id)]
        inputs = self._inputs(comparison, pending)
        if inputs is None:
            return
        for cell in pending:
            if self.run.part(cell.id, "quality") is None and not self._late(cell, inputs):
                self._quality(cell, inputs)
        stopped = self._rounds(comparison, pending, inputs)
        for cell in pending:
            if not self.run.has(cell.id):
                late = stopped and cell.seed == self.settings.seeds[0]
                self._finish(cell, inputs, "skipped" if late else "ok", stopped if late else "")

    def _rounds(self, comparison: Comparison, pending: list[Cell], inputs: dict[str, Any]) -> str:
        """Time the cells that have their quality; returns why it stopped short, if it did."""
        timed = [c for c in pending if c.seed == self.settings.seeds[0]]
        companions = self._companions(comparison, timed)
        for number in range(self.settings.rounds):
            if number in self.settings.looks and self._settled(comparison, inputs):
                break
            timed = [c for c in timed if not self.run.has(c.id)]
            if all(self.run.part(c.id, f"round-{number}") for c in timed):
                continue
            if time.monotonic() > self.deadline:
                return f"{number} of {self.settings.rounds} rounds within {self._limit}; --resume goes on"
            # rounds are paired: whoever misses one runs it with all that still run
            self._round(comparison, timed, companions, number, inputs)
        return ""

    def _companions(self, comparison: Comparison, timed: list[Cell]) -> list[Cell]:
        """Finished cells to run once more beside those to be timed: only what ran side by side is a pair."""
        if not timed:
            return []
        finished = {one["cell"] for one in self.run.records([]) if one["status"] == "ok"}
        found = [c for c in self.experiment.cells(comparison) if c.seed == timed[0].seed and c.id in finished]
        if any(cell.arm is comparison.baseline for cell in timed):
            return found
        return [cell for cell in found if cell.arm is comparison.baseline]

    def _inputs(self, comparison: Comparison, pending: list[Cell]) -> dict[str, Any] | None:
        stored = self.run.inputs(comparison.id)
        if stored is not None:
            return stored
        self._tell("build", comparison)
        try:
            with self.workers.lend(comparison) as worker:
                self.workers.open(worker, comparison, self.settings.seeds[0], None)
                inputs: dict[str, Any] = worker.ask("build", self.settings.cell_timeout)
        except CellFailure as failure:
            for cell in pending:
                self._fail(cell, {"model": None}, failure, "build")
            return None
        self.run.write_inputs(comparison.id, inputs)
        if read := {kind: inputs[kind] for kind in ("data", "models") if inputs.get(kind)}:
            manifest = self.run.manifest
            known = {kind: {**manifest.get(kind, {}), comparison.id: found} for kind, found in read.items()}
            self.run.write_manifest({**manifest, **known})
        return inputs

    def _quality(self, cell: Cell, inputs: dict[str, Any]) -> None:
        self._tell("quality", cell.comparison, cell)
        reference = None
        if cell.arm is not cell.comparison.baseline:
            base = Cell(cell.comparison, cell.comparison.baseline, cell.seed)
            part = self._quality_of(base)
            reference = part["quality"] if part else None
        try:
            with self.workers.lend(cell.comparison) as worker:
                self.workers.open(worker, cell.comparison, cell.seed, inputs)
                prepared = self.workers.prepare(worker, cell.arm)
                answer = worker.ask("quality", self.settings.cell_timeout, arm=cell.arm.label, reference=reference)
                worker.ask("close", self.settings.cell_timeout, arm=cell.arm.label)
        except CellFailure as failure:
            self._fail(cell, inputs, failure, "quality")
            return
        self.run.write_part(cell.id, "quality", {**answer, "prepared": prepared})

    def _quality_of(self, cell: Cell) -> dict[str, Any] | None:
        """What the quality pass found, whether or not the cell is finished."""
        part: dict[str, Any] | None = self.run.part(cell.id, "quality")
        finished = (one for one in self.run.records([]) if one["cell"] == cell.id)
        return part or next((dict(record.parts(one)).get("quality") for one in finished), None)

    # one round

    def _round(
        self, comparison: Comparison, timed: list[Cell], companions: list[Cell], number: int, inputs: dict[str, Any]
    ) -> None:
        self._tell("timing", comparison, number=number)
        order = [*timed, *companions]
        random.Random(f"{comparison.id} {self.settings.seeds[0]} {number}").shuffle(order)
        together = not self.settings.inline and self._fit_together(order)
        groups = [order] if together else [[cell] for cell in order]
        common = {"round": number, "started": round(time.time(), 3), "together": together}
        measured: dict[str, dict[str, Any]] = {}
        for group in groups:
            measured.update(self._group(comparison, group, number, inputs))
        beside = {cell.arm.label: {**common, **measured[cell.id]} for cell in companions if cell.id in measured}
        for cell in timed:
            if cell.id in measured:
                if beside:
                    self.run.write_part(cell.id, f"beside-{number}", beside)
                self.run.write_part(cell.id, f"round-{number}", {**common, **measured[cell.id]})

    def _group(
        self, comparison: Comparison, cells: list[Cell], number: int, inputs: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        limit = self.settings.cell_timeout
        parts: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            # all start before the first is waited for: they import at the same time
            workers = {cell.id: stack.enter_context(self.workers.lend(comparison)) for cell in cells}
            alive = list(cells)

            def each(name: str, act: Callable[[Cell, Worker], None]) -> None:
                for cell in list(alive):
                    try:
                        act(cell, workers[cell.id])
                    except CellFailure as failure:
                        alive.remove(cell)
                        parts.pop(cell.id, None)
                        if not self.run.has(cell.id):  # else it was run once more for the others' sake
                            self._fail(cell, inputs, failure, f"round {number}, {name}")

            def warm_up(cell: Cell, worker: Worker) -> None:
                self.workers.open(worker, comparison, cell.seed, inputs)
                prepared = self.workers.prepare(worker, cell.arm)
                warm = worker.ask("burst", limit, arm=cell.arm.label, index=WARMUP)
                parts[cell.id] = {"prepared": prepared, "warmup": warm, "bursts": []}

            each("warm-up", warm_up)
            for burst in range(comparison.bursts):
                index = number * comparison.bursts + burst
                if burst % 2:
                    alive.reverse()
                pids = [worker.pid for worker in workers.values()]

                def timed(cell: Cell, worker: Worker, index: int = index, pids: list[int] = pids) -> None:
                    parts[cell.id]["bursts"] += self._burst(cell, worker, index, pids)

                each("burst", timed)
                if burst % 2:
                    alive.reverse()

            def memory(cell: Cell, worker: Worker) -> None:
                parts[cell.id]["memory"] = worker.ask(
                    "memory", limit, arm=cell.arm.label, index=number * comparison.bursts
                )

            each("memory", memory)
            if self.settings.profile:

                def profile(cell: Cell, worker: Worker) -> None:
                    parts[cell.id]["profile"] = worker.ask(
                        "profile", limit, arm=cell.arm.label, index=number * comparison.bursts
                    )

                each("profile", profile)

            def calls(cell: Cell, worker: Worker) -> None:
                taken = worker.ask("calls", limit, arm=cell.arm.label, index=number * comparison.bursts)
                if taken:
                    parts[cell.id]["calls"] = taken

            each("calls", calls)
            each("close", lambda cell, worker: worker.ask("close", limit, arm=cell.arm.label))
        return parts

    def _burst(self, cell: Cell, worker: Worker, index: int, pids: list[int]) -> Iterator[dict[str, Any]]:
        """One timed burst, repeated while somebody else disturbs it. All tries are kept, the last is used."""
        bursts = cell.comparison.bursts
        about = {"comparison": cell.comparison.id, "arm": cell.arm.label, "burst": index % bursts, "bursts": bursts}
        for attempt in range(TRIES):
            self.say({"event": "burst", **about, "try": attempt})
            before = load.read(pids, self.device == "cuda")
            samples = worker.ask("burst", self.settings.cell_timeout, arm=cell.arm.label, index=index)
            around = load.between(before, load.read(pids, self.device == "cuda"))
            last = attempt == TRIES - 1 or not around["disturbed"] or self.settings.quick
            yield {"index": index, "try": attempt, "used": last, "load": around, "samples": samples}
            if last:
                return

    def _fit_together(self, cells: list[Cell]) -> bool:
        peaks = [(self._quality_of(cell) or {}).get("peak") for cell in cells]
        known = [int(peak) for peak in peaks if peak]
        return len(known) == len(cells) and sum(known) <= TOGETHER_SHARE * self.workers.memory()

    # records

    def _late(self, cell: Cell, inputs: dict[str, Any]) -> bool:
        if time.monotonic() < self.deadline:
            return False
        failure = CellFailure("skipped", f"not begun within {self._limit}; --resume goes on")
        self._fail(cell, inputs, failure, "quality")
        return True

    @property
    def _limit(self) -> str:
        return f"the run's limit of {self.settings.max_time / 60:.0f} min"

    def _fail(self, cell: Cell, inputs: dict[str, Any], failure: CellFailure, where: str) -> None:
        self._finish(cell, inputs, failure.status, failure.reason, failure, where)

    def _finish(
        self,
        cell: Cell,
        inputs: dict[str, Any],
        status: str,
        reason: str,
        failure: CellFailure | None = None,
        where: str = "",
    ) -> None:
        """Put a cell's parts together and move its record into place."""
        assembled = self._assembled(cell, inputs)
        ending: dict[str, Any] = {"status": status, "reason": reason, "where": where}
        if failure:
            ending |= {"detail": failure.detail, "curve": failure.curve}
        self.run.finish(cell.id, {**assembled, **ending, "config_sha256": self.experiment.hash})
        self.say({"event": "cell", "cell": cell.id, "status": status, "reason": reason})

    def _assembled(self, cell: Cell, inputs: dict[str, Any]) -> dict[str, Any]:
        numbers = range(self.settings.rounds)
        rounds = [part for number in numbers if (part := self.run.part(cell.id, f"round-{number}"))]
        beside: dict[str, list[dict[str, Any]]] = {}
        for number in numbers:
            for arm, part in (self.run.part(cell.id, f"beside-{number}") or {}).items():
                beside.setdefault(arm, []).append(part)
        return record.assemble(
            cell,
            self.settings,
            quality=self.run.part(cell.id, "quality") or {},
            rounds=rounds,
            beside=beside,
            inputs=inputs,
            environment=self.environment,
        )

    def _settled(self, comparison: Comparison, inputs: dict[str, Any]) -> bool:
        cells = list(self.experiment.cells(comparison))
        finished = [one for one in self.run.records([]) if one["comparison"] == comparison.id]
        going = [{**self._assembled(c, inputs), "status": "ok", "reason": ""} for c in cells if not self.run.has(c.id)]
        return outcome.settled([*finished, *going])

    def _tell(self, stage: str, comparison: Comparison, cell: Cell | None = None, number: int | None = None) -> None:
        arm, seed = (cell.arm.label, cell.seed) if cell else (None, None)
        rounds = {"round": number, "rounds": self.settings.rounds}
        self.say({"event": "stage", "stage": stage, "comparison": comparison.id, "arm": arm, "seed": seed, **rounds})
