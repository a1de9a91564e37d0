"""Runs an experiment: builds what arms share, scores them, times them in turn, and alone moves records into place.

Quality comes first, one process per arm and seed; an arm that fails there costs no timing. Then rounds: the arms'
processes live side by side and serve short bursts in turn, in a seeded order that is mirrored every second time
(A B B A). Where they do not fit in memory together they take turns as whole processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import outcome, record
from bench.experiment import Arm, Cell, Comparison, Experiment
from bench.probes import load
from bench.process import CellFailure, Worker, available_memory
from bench.store import Run
from bench.worker import WARMUP

TRIES = 3
"""A disturbed burst is repeated until it has been run this often."""
START_LIMIT = 300.0
"""Importing the libraries may take this long on a busy machine [s]."""
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
        self.plugins = plugins
        self.device: str = environment["device"]["kind"]
        self.deadline = time.monotonic() + self.settings.max_time
        self._inline: Worker | None = None

    def go(self) -> None:
        """Run what is not there yet, comparison by comparison."""
        shared: tuple[str, str] | None = None
        try:
            for comparison in self.experiment.comparisons:
                if shared != (comparison.family, comparison.model):
                    shared = comparison.family, comparison.model
                    self._end_inline()
                if any(not self.run.has(cell.id) for cell in self.experiment.cells(comparison)):
                    self._comparison(comparison)
                self.say({"event": "comparison", "comparison": comparison.id, "family": comparison.family})
        finally:
            self._end_inline()

    # one comparison

    def _comparison(self, comparison: Comparison) -> None:
        pending = [c for c in self.experiment.cells(comparison) if not self.run.has(c.id)]
        inputs = self._inputs(comparison, pending)
        if inputs is None:
            return
        for cell in pending:
            if self.run.part(cell.id, "quality") is None and not self._late(cell, inputs):
                self._quality(cell, inputs)
        timed = [c for c in pending if c.seed == self.settings.seeds[0] and not self.run.has(c.id)]
        for number in range(self.settings.rounds):
            if number in self.settings.looks and self._settled(comparison, inputs):
                break
            missing = [c for c in timed if self.run.part(c.id, f"round-{number}") is None]
            if missing and time.monotonic() < self.deadline:
                # rounds are paired: whoever misses one runs it with all that still run
                self._round(comparison, [c for c in timed if not self.run.has(c.id)], number, inputs)
            timed = [c for c in timed if not self.run.has(c.id)]
        for cell in pending:
            if not self.run.has(cell.id):
                self._finish(cell, inputs, "ok", "")

    def _inputs(self, comparison: Comparison, pending: list[Cell]) -> dict[str, Any] | None:
        stored = self.run.inputs(comparison.id)
        if stored is not None:
            return stored
        self._tell("build", comparison)
        try:
            with self._lend(comparison) as worker:
                self._open(worker, comparison, self.settings.seeds[0], None)
                inputs: dict[str, Any] = worker.ask("build", self.settings.cell_timeout)
        except CellFailure as failure:
            for cell in pending:
                self._fail(cell, {"model": None}, failure, "build")
            return None
        self.run.write_inputs(comparison.id, inputs)
        return inputs

    def _quality(self, cell: Cell, inputs: dict[str, Any]) -> None:
        self._tell("quality", cell.comparison, cell)
        reference = None
        if cell.arm is not cell.comparison.baseline:
            base = Cell(cell.comparison, cell.comparison.baseline, cell.seed)
            part = self.run.part(base.id, "quality") or self._finished_quality(base)
            reference = part["quality"] if part else None
        try:
            with self._lend(cell.comparison) as worker:
                self._open(worker, cell.comparison, cell.seed, inputs)
                prepared = self._prepare(worker, cell.arm)
                answer = worker.ask("quality", self.settings.cell_timeout, arm=cell.arm.label, reference=reference)
                worker.ask("close", self.settings.cell_timeout, arm=cell.arm.label)
        except CellFailure as failure:
            self._fail(cell, inputs, failure, "quality")
            return
        self.run.write_part(cell.id, "quality", {**answer, "prepared": prepared})

    def _finished_quality(self, cell: Cell) -> dict[str, Any] | None:
        for finished in self.run.records([]):
            if finished["cell"] == cell.id and finished["quality"]:
                return {"quality": finished["quality"]}
        return None

    # one round

    def _round(self, comparison: Comparison, cells: list[Cell], number: int, inputs: dict[str, Any]) -> None:
        self._tell("timing", comparison, number=number)
        order = list(cells)
        random.Random(f"{comparison.id} {self.settings.seeds[0]} {number}").shuffle(order)
        together = not self.settings.inline and self._fit_together(cells)
        groups = [order] if together else [[cell] for cell in order]
        measured: dict[str, dict[str, Any]] = {}
        for group in groups:
            measured.update(self._group(comparison, group, number, inputs))
        for cell_id, part in measured.items():
            self.run.write_part(cell_id, f"round-{number}", {**part, "together": together})

    def _group(
        self, comparison: Comparison, cells: list[Cell], number: int, inputs: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        limit = self.settings.cell_timeout
        parts: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            # all start before the first is waited for: they import at the same time
            workers = {cell.id: stack.enter_context(self._lend(comparison)) for cell in cells}
            alive = list(cells)

            def each(name: str, act: Callable[[Cell, Worker], None]) -> None:
                for cell in list(alive):
                    try:
                        act(cell, workers[cell.id])
                    except CellFailure as failure:
                        alive.remove(cell)
                        parts.pop(cell.id, None)
                        self._fail(cell, inputs, failure, f"round {number}, {name}")

            def warm_up(cell: Cell, worker: Worker) -> None:
                self._open(worker, comparison, cell.seed, inputs)
                prepared = self._prepare(worker, cell.arm)
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
            each("close", lambda cell, worker: worker.ask("close", limit, arm=cell.arm.label))
        return parts

    def _burst(self, cell: Cell, worker: Worker, index: int, pids: list[int]) -> Iterator[dict[str, Any]]:
        """One timed burst, repeated while somebody else disturbs it. All tries are kept, the last is used."""
        for attempt in range(TRIES):
            before = load.read(pids, self.device == "cuda")
            samples = worker.ask("burst", self.settings.cell_timeout, arm=cell.arm.label, index=index)
            around = load.between(before, load.read(pids, self.device == "cuda"))
            last = attempt == TRIES - 1 or not around["disturbed"] or self.settings.quick
            yield {"index": index, "try": attempt, "used": last, "load": around, "samples": samples}
            if last:
                return

    def _fit_together(self, cells: list[Cell]) -> bool:
        peaks = [(self.run.part(cell.id, "quality") or {}).get("peak") for cell in cells]
        known = [int(peak) for peak in peaks if peak]
        return len(known) == len(cells) and sum(known) <= TOGETHER_SHARE * self._memory_for_workers()

    def _memory_for_workers(self) -> int:
        if self.device != "cuda":
            return available_memory()
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free)

    # workers

    @contextmanager
    def _lend(self, comparison: Comparison) -> Iterator[Worker]:
        """A process of its own; inline, the family's one."""
        if self.settings.inline:
            if self._inline is None or not self._inline.alive:
                self._end_inline()
                self._inline = Worker(self._setting(comparison))
            yield self._inline
            return
        with Worker(self._setting(comparison)) as worker:
            yield worker

    def _open(self, worker: Worker, comparison: Comparison, seed: int, inputs: dict[str, Any] | None) -> None:
        worker.ready(START_LIMIT)
        worker.ask(
            "open",
            self.settings.cell_timeout,
            workload=comparison.workload_name,
            parameters=comparison.workload.model_dump(mode="json"),
            built=inputs["built"] if inputs else None,
            seed=seed,
        )

    def _setting(self, comparison: Comparison) -> dict[str, Any]:
        return {
            "model": comparison.model,
            "others": {"draft": self.settings.draft} if self.settings.draft else {},
            "device": self.device,
            "dtype": self.environment["device"]["dtype"],
            "plugins": list(self.plugins),
        }

    def _end_inline(self) -> None:
        if self._inline:
            self._inline.end()
            self._inline = None

    def _prepare(self, worker: Worker, arm: Arm) -> dict[str, Any]:
        prepared: dict[str, Any] = worker.ask(
            "prepare",
            self.settings.cell_timeout,
            arm=arm.label,
            technique=arm.name,
            parameters=arm.technique.model_dump(mode="json"),
        )
        return prepared

    # records

    def _late(self, cell: Cell, inputs: dict[str, Any]) -> bool:
        if time.monotonic() < self.deadline:
            return False
        limit = self.settings.max_time / 60
        failure = CellFailure("skipped", f"the run's limit of {limit:.0f} min was reached; --resume goes on")
        self._fail(cell, inputs, failure, "quality")
        return True

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
        parts = [self.run.part(cell.id, f"round-{number}") for number in range(self.settings.rounds)]
        return record.assemble(
            cell,
            self.settings,
            quality=self.run.part(cell.id, "quality") or {},
            rounds=[{"round": number, **part} for number, part in enumerate(parts) if part],
            inputs=inputs,
            environment=self.environment,
        )

    def _settled(self, comparison: Comparison, inputs: dict[str, Any]) -> bool:
        cells = list(self.experiment.cells(comparison))
        finished = [one for one in self.run.records([]) if one["comparison"] == comparison.id]
        going = [{**self._assembled(c, inputs), "status": "ok", "reason": ""} for c in cells if not self.run.has(c.id)]
        return outcome.settled([*finished, *going])

    def _tell(self, stage: str, comparison: Comparison, cell: Cell | None = None, number: int = 0) -> None:
        self.say(
            {
                "event": "stage",
                "stage": stage,
                "comparison": comparison.id,
                "arm": cell.arm.label if cell else None,
                "seed": cell.seed if cell else None,
                "round": number,
                "rounds": self.settings.rounds,
            }
        )
