"""The folder of a run: `results/<experiment>/<UTC>_<device>_<commit>/`, for what can be published and nothing else.
Other runs lie apart, in `results/{quick,dirty,disturbed}/<experiment>/`.

manifest.json        what ran, on what, with which config
inputs/<c>.json      what a comparison's arms share
parts/<cell>/*.json  what is measured of a cell that is not finished
cells/<cell>.json    one record per finished cell

Every file is written aside and moved into place: there is no half-written one. Parts make a broken run resumable.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.anonymous import anonymous
from bench.errors import StoreError, UsageError
from bench.manifest import ROOT

SCHEMA = 1
STATUSES = ("ok", "oom", "failed", "timeout", "unsupported", "skipped")
APART = {"quick": "quick", "inline": "quick", "dirty": "dirty", "disturbed": "disturbed"}
"""Stamp -> the folder under results/ for runs that bear it; the first that holds decides."""


KEYS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("cell", "comparison", "family", "arm", "baseline", "status", "reason"), str),
    **dict.fromkeys(("technique", "workload", "primary", "environment"), dict),
    **dict.fromkeys(("model", "quality"), (dict, type(None))),
    **dict.fromkeys(("rounds", "stamps"), list),
    "seed": int,
}
"""What every record holds, whichever version wrote it."""


def results_folder() -> Path:
    return ROOT / "results"


def place(out: Path, experiment: str, stamps: Collection[str]) -> Path:
    """The folder of an experiment's runs that bear these stamps.

    Raises:
        UsageError: the experiment is named like a folder of runs that lie apart.
    """
    if experiment in APART.values():
        raise UsageError(f"name: {experiment!r} is where results that cannot be published go; name it otherwise")
    apart = [folder for stamp, folder in APART.items() if stamp in stamps]
    return out.joinpath(*apart[:1], experiment)


def write_json(path: Path, data: Any) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: the folder cannot be written, or the disk is full.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: the folder cannot be written, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"cannot write {path}: {error.strerror}; nothing half-written was left, and what was finished is kept"
        ) from error


def read_json(path: Path) -> Any:
    """Raises StoreError where the file is missing, cut off or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, place: Path, device: str, commit: str | None) -> Run:
        """A new folder in `place`, named by time, device and commit.

        Raises:
            UsageError: it cannot be made there.
            StoreError: the disk is full.
        """
        named = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:40].strip("-")
        while True:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            folder = place / f"{stamp}_{named}_{(commit or 'nocommit')[:8]}"
            try:
                folder.mkdir(parents=True)
                return cls(folder)
            except OSError as error:
                if folder.is_dir():  # another run began in this second
                    time.sleep(1)
                    continue
                kind = StoreError if error.errno in {errno.ENOSPC, errno.EDQUOT} else UsageError
                raise kind(f"cannot make {folder}: {error.strerror}; choose another with --out") from error

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A folder that holds a run.

        Raises:
            UsageError: it holds none.
        """
        if not (folder / "manifest.json").is_file():
            raise UsageError(f"{folder} holds no run (no manifest.json)")
        return cls(folder)

    @property
    def manifest(self) -> dict[str, Any]:
        """What ran, on what, with which config.

        Raises:
            StoreError: it is damaged, or of another version of this program.
        """
        path = self.folder / "manifest.json"
        manifest = read_json(path)
        _check_schema(path, manifest)
        return dict(manifest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / "manifest.json", {"schema": SCHEMA, **anonymous(manifest)})

    def move(self, place: Path) -> Run:
        """The run in `place`, all of it or, on an error, none.

        Raises:
            StoreError: it cannot be moved there; it stays where it is.
        """
        if self.folder.parent == place:
            return self
        target = place / self.folder.name
        try:
            place.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder, target)
        except OSError as error:
            raise StoreError(f"cannot move {self.folder} to {target}: {error.strerror}; move it by hand") from error
        return Run(target)

    def inputs(self, comparison: str) -> dict[str, Any] | None:
        path = self.folder / "inputs" / f"{comparison}.json"
        return read_json(path) if path.exists() else None

    def write_inputs(self, comparison: str, inputs: dict[str, Any]) -> None:
        write_json(self.folder / "inputs" / f"{comparison}.json", inputs)

    def part(self, cell: str, name: str) -> Any:
        """A measured part of an unfinished cell, None if it is not there or cannot be read: it is measured again."""
        try:
            return read_json(self.folder / "parts" / cell / f"{name}.json")
        except StoreError:
            return None

    def write_part(self, cell: str, name: str, data: Any) -> None:
        write_json(self.folder / "parts" / cell / f"{name}.json", data)

    def finish(self, cell: str, record: dict[str, Any]) -> None:
        """Move a cell's record into place and drop its parts."""
        assert record["status"] in STATUSES
        write_json(self.folder / "cells" / f"{cell}.json", {"schema": SCHEMA, **anonymous(record)})
        self._drop_parts()

    def has(self, cell: str) -> bool:
        return (self.folder / "cells" / f"{cell}.json").exists()

    def forget(self, cell: str) -> None:
        """Drop a record, so that the cell is run again."""
        (self.folder / "cells" / f"{cell}.json").unlink(missing_ok=True)

    def reopen(self, cell: str, parts: Iterable[tuple[str, Any]]) -> None:
        """Turn a record back into its parts, so that the cell goes on from them."""
        for name, part in parts:
            self.write_part(cell, name, part)
        self.forget(cell)

    def tidy(self) -> None:
        """Remove what a killed run left: files that were never moved into place, parts of cells that are finished."""
        for aside in self.folder.rglob(".*.tmp"):
            aside.unlink(missing_ok=True)
        self._drop_parts()

    def _drop_parts(self) -> None:
        """Of the cells that are finished."""
        parts = self.folder / "parts"
        for of_cell in parts.glob("*"):
            if self.has(of_cell.name):
                shutil.rmtree(of_cell, ignore_errors=True)
        if parts.is_dir() and not any(parts.iterdir()):
            parts.rmdir()

    def records(self, damaged: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """All records in the order they were asked for; damaged or foreign ones are named and left out."""
        manifest = self.manifest
        order = {cell: index for index, cell in enumerate(manifest.get("cells", []))}
        paths = sorted((self.folder / "cells").glob("*.json"), key=lambda p: order.get(p.stem, len(order)))
        for path in paths:
            try:
                yield _record(path, manifest)
            except StoreError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))


def _record(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Raises StoreError where a file is no record of this run that this program can read."""
    record = read_json(path)
    _check_schema(path, record)
    wrong = [key for key, kind in KEYS.items() if not isinstance(record.get(key, ...), kind)]
    if wrong or record["status"] not in STATUSES:
        raise StoreError(f"{path.name} is no record ({', '.join(wrong) or 'status'})")
    if record["cell"] != path.stem or path.stem not in manifest.get("cells", ()):
        raise StoreError(f"{path.name} holds cell {record['cell']!r}, which this run has not under this name")
    if record.get("config_sha256") != manifest.get("config_sha256"):
        raise StoreError(f"{path.name} was made with another config")
    return dict(record)


def _check_schema(path: Path, data: Any) -> None:
    if not isinstance(data, dict):
        raise StoreError(f"{path} holds no mapping")
    if data.get("schema") != SCHEMA:
        raise StoreError(f"{path} has schema {data.get('schema')!r}, this program reads {SCHEMA}")


def newest(out: Path, experiment: str, config_sha256: str, apart: Iterable[str] = APART) -> Run:
    """The latest run of a config; those with a damaged manifest are left out.

    Args:
        apart: stamps of runs that count too, though they cannot be published.

    Raises:
        UsageError: there is none.
    """
    places = {place(out, experiment, [stamp]) for stamp in ("", *apart)}
    runs = [Run(path.parent) for each in places for path in each.glob("*/manifest.json")]
    runs.sort(key=lambda run: run.folder.name, reverse=True)
    readable = []
    damaged = ""
    for run in runs:
        try:
            if run.manifest.get("config_sha256") == config_sha256:
                return run
            readable.append(run)
        except StoreError as error:
            damaged = f" ({error})"
    if readable:
        raise UsageError(f"{readable[0].folder} was run with another config; start a new run without --resume{damaged}")
    raise UsageError(f"no run of {experiment!r} under {out}; start one without --resume{damaged}")
