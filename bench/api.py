"""The same as the command line, from Python: `run("decoding")` -> a run's folder with its records and table."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import (
    commands,
    embedded,
    experiment,
    hub_file,
    kept,
    manifest,
    model_names,
    outcome,
    plan,
    record,
    remaining,
    store,
    suites,
)
from bench.anonymous import anonymous
from bench.errors import ModelError, StoreError, UsageError
from bench.lock import folder_lock, machine_lock
from bench.report import files, table
from bench.runner import Event, Runner

Config = str | Path | Iterable[str | Path] | Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What came out: a folder and what its records say."""

    store: store.Run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that is stored already.

        Raises:
            UsageError: the folder holds none.
        """
        return cls(store.Run.open(Path(folder)))

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """What ran, on what, with which config."""
        return self.store.manifest

    def records(self) -> list[dict[str, Any]]:
        return list(self.store.records([]))

    def rows(self) -> dict[str, list[outcome.Row]]:
        """Comparison -> rows with estimates."""
        return outcome.rows(self.records())

    def table(self) -> list[dict[str, Any]]:
        """One flat mapping per arm and metric, all with the same keys: `pandas.DataFrame(run.table())` takes it."""
        return table.flat(self.rows())


def prepare(
    config: Config = (),
    origin: str = "config",
    *,
    model: str | None = None,
    data: str | Path | None = None,
    judge: str | None = None,
    seed: int | None = None,
    settings: str | Iterable[str] = (),
    **fields: Any,
) -> tuple[experiment.Experiment, str, str]:
    """Turn what is wanted into a checked experiment; returns it with its device and its dtype.

    Args:
        config: a YAML file, the name of a config, family or technique, several of them, what a file would hold, or
            nothing: the suite for this machine.
        origin: names a config that is no file in error messages.
        model: the target of every comparison.
        data: a file of your own, or `hub:OWNER/NAME@REVISION/FILE`, for every workload that reads one.
        judge: a model that says which of two answers is better, or a program, as `command:python3 judge.py`, for every
            workload that asks one.
        seed: the one seed to run.
        settings: KEY=VALUE as after `--set`; a list of values, `workload.items=8,16`, spans an axis.
        fields: any of `settings.Settings`: device, draft, max_time, quick, replicates ...; None is left as it is.

    Raises:
        UsageError: the config, the device or a setting is wrong.
    """
    if isinstance(config, Mapping):
        raw = dict(config)
    else:
        words = [config] if isinstance(config, str | Path) else config
        raw, origin = suites.find(map(str, words), fields.get("device") or "auto")
    raw.update({key: value for key, value in fields.items() if value is not None})
    if model is not None:
        raw = suites.retarget(raw, model)
    if seed is not None:
        raw["seeds"] = [seed]
    raw = suites.override(raw, [settings] if isinstance(settings, str) else settings)
    if data is not None:
        if not hub_file.parse(data) and not Path(data).exists():
            raise UsageError(f"data {data}: no such file")
        raw = suites.with_text(raw, "path", str(data))
    if judge is not None:
        if judge.startswith(commands.PREFIX):
            commands.give(judge)
        raw = suites.with_text(raw, "judge", judge)
    checked = experiment.check(raw, origin)
    device = manifest.resolve_device(checked.settings.device)
    return checked, device, manifest.resolve_dtype(checked.settings.dtype, device)


def run(
    config: Config = (),
    out: str | Path | None = None,
    resume: bool = False,
    say: Callable[[Event], None] = lambda event: None,
    argv: tuple[str, ...] = (),
    plugins: tuple[str, ...] = (),
    lock: Path | None = None,
    **wanted: Any,
) -> Run:
    """Run an experiment to its end, or to its time limit.

    Args:
        config: as `prepare` takes it: `"decoding"`, `"my.yaml"`, a mapping ...
        out: where results go; `results/` of the checkout if None.
        resume: go on with the newest run of this config instead of starting one.
        say: takes an event at every stage, burst and finished cell.
        argv: the command line, for the record.
        plugins: modules that workers import besides the registered plug-ins.
        lock: the machine-wide lock's file; tests bring their own.
        wanted: what else `prepare` takes: model, data, seed, settings, and fields as quick, max_time, replicates.

    Raises:
        UsageError: the config is wrong, or its plan exceeds its limit.
        Busy: another run is timing on this machine.
    """
    checked, device, dtype = prepare(config, **wanted)
    plan.check(checked, device, dtype)
    model_names.ensure(checked.models, lambda line: say({"event": "note", "text": line}))
    for name in checked.models:
        if not model_names.at_hand(name):
            raise ModelError(
                f"model {name!r} is not in the local cache, and the hub does not answer for it; check the id and the "
                f"connection, or give the folder of a saved model (--model {embedded.NAME} needs no hub)"
            )
    out = Path(out) if out else store.results_folder()
    facts = anonymous(manifest.collect(device, dtype, argv))
    owner = f"experiment {checked.settings.name}"
    with machine_lock(owner, lock), _terminable():
        folder = _found(out, checked, facts) if resume else _new(out, checked, facts)
        with folder_lock(folder.folder, owner) as held:
            if resume:
                _reopen(folder, say)
            ahead = remaining.ahead(checked, device, dtype, folder)
            say({"event": "start", "folder": str(folder.folder), **ahead})
            try:
                Runner(checked, folder, facts, say, plugins).go()
                folder.write_manifest({**folder.manifest, "ended": _now()})
            except BaseException:
                with suppress(StoreError):  # the first error is the one to tell
                    _conclude(folder, held, out, checked, facts, say)
                raise
            return Run(_conclude(folder, held, out, checked, facts, say))


def _conclude(
    folder: store.Run,
    held: Path,
    out: Path,
    checked: experiment.Experiment,
    facts: dict[str, Any],
    say: Callable[[Event], None],
) -> store.Run:
    """Draw what people read, and put the run where its stamps say that it belongs."""
    held.unlink(missing_ok=True)
    for line in files.write(folder):
        say({"event": "note", "text": f"left out: {line}"})
    folder = folder.move(_place(out, checked, facts, folder.records([])))
    say({"event": "end", "folder": str(folder.folder)})
    return folder


def _place(
    out: Path, checked: experiment.Experiment, facts: dict[str, Any], records: Iterable[dict[str, Any]] = ()
) -> Path:
    """Where a run belongs by what is known of it at the start, and by its records."""
    stamps = {stamp for one in records for stamp in one["stamps"]}
    return store.place(out, checked.settings.name, stamps.union(record.stamps(checked.settings, [], facts)))


def _new(out: Path, checked: experiment.Experiment, facts: dict[str, Any]) -> store.Run:
    folder = store.Run.create(_place(out, checked, facts), facts["device"]["name"], facts["code"]["commit"])
    try:
        folder.write_manifest(
            {
                "experiment": checked.settings.name,
                "started": _now(),
                "ended": None,
                "argv": facts["argv"],
                "config": dict(checked.raw),
                "config_sha256": checked.hash,
                "data": {},
                "environment": facts,
                "calibration": kept.known("calibration", facts),
                "determinism": kept.known("determinism", facts),
                "cells": [cell.id for cell in checked.cells()],
            }
        )
    except StoreError:
        folder.folder.rmdir()
        raise
    return folder


def _found(out: Path, checked: experiment.Experiment, facts: dict[str, Any]) -> store.Run:
    """The newest run of this config, if it can go on here."""
    folder = store.newest(out, checked.settings.name, checked.hash)
    changed = manifest.lasting_differences(folder.manifest["environment"], facts)
    if changed:
        raise UsageError(
            f"{folder.folder} was run in another environment ({', '.join(changed[:4])}); start a new run "
            f"without --resume"
        )
    return folder


def _reopen(folder: store.Run, say: Callable[[Event], None]) -> None:
    """Keep the cells that are finished; what was measured of the others is where they go on."""
    folder.tidy()
    damaged: list[str] = []
    readable = {one["cell"]: one for one in folder.records(damaged)}
    for line in damaged:
        say({"event": "note", "text": f"measured again: {line}"})
    for cell in folder.manifest["cells"]:
        if cell not in readable:
            folder.forget(cell)
        elif readable[cell]["status"] not in {"ok", "unsupported"}:
            folder.reopen(cell, record.parts(readable[cell]))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: workers are ended, finished cells are kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever owns the signals deals with them
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
