"""From a run's folder alone to the config that makes it again.

The folder is data: its manifest is read as JSON, the config in it is checked as any config is, techniques and
workloads are those registered here, and no code that comes with a model is run. A path in it may name a file of this
checkout and no other: what lay elsewhere is given anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import data_files, hub_file, hub_model
from bench.errors import UsageError
from bench.manifest import ROOT
from bench.store import Run

HASHED = "path:"
"""What a path outside the checkout is kept as: its hash."""


def settings(
    run: Run,
    data: Sequence[Path] = (),
    models: Sequence[str] = (),
    device: str | None = None,
    max_time: str | None = None,
) -> dict[str, Any]:
    """The config that made a run, with the device and dtype that it came to; what is of a hub is as it was then.

    Args:
        data: in the place of files that the run read and that are not here, in the order of the config, files of
            held-out data last.
        models: the same of folders that hold models.
        device: another one than the run's.
        max_time: another limit than the run's.

    Raises:
        UsageError: a file or folder is missing, or one too many is given.
    """
    manifest = run.manifest
    stored, environment = manifest.get("config"), manifest.get("environment")
    at = environment.get("device") if isinstance(environment, dict) else None
    if not isinstance(stored, dict) or not isinstance(at, dict):
        raise UsageError(f"{run.folder}: its manifest holds no config and device to run again; give another run")
    raw = copy.deepcopy(stored)
    raw |= {"device": device or at.get("kind"), "dtype": at.get("dtype")}
    if max_time is not None:
        raw["max_time"] = max_time
    files = [place for name in data_files.FIELDS for place in _places(raw, _workloads, name)]
    for place in files:
        place.holder[place.key] = data_files.pinned(str(place.value), manifest.get("data"))
    _fill(files, [str(path) for path in data], "--data", "file", run)
    named = [place for role in ("model", "draft", "reference") for place in _places(raw, _blocks, role)]
    for place in named:
        place.holder[place.key] = hub_model.pinned(str(place.value), manifest.get("models"))
    _fill([place for place in named if _is_folder(place.value)], list(models), "--model", "folder", run)
    return raw


@dataclass(frozen=True)
class _Place:
    """Where a config names a path: a key of a mapping, or a place in a list under it."""

    holder: Any
    key: Any
    where: str

    @property
    def value(self) -> Any:
        return self.holder[self.key]


def _blocks(raw: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """The config itself and its comparisons, whatever they are: the config is checked when it is run."""
    yield raw, ""
    listed = raw.get("comparisons")
    for index, block in enumerate(listed if isinstance(listed, list) else []):
        yield block, f"comparisons[{index}]."


def _workloads(raw: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    for block, where in _blocks(raw):
        if isinstance(block, dict):
            yield block.get("workload"), f"{where}workload."


def _places(
    raw: dict[str, Any], holders: Callable[[dict[str, Any]], Iterator[tuple[Any, str]]], key: str
) -> Iterator[_Place]:
    for holder, where in holders(raw):
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, list):
            yield from (_Place(value, index, f"{where}{key}[{index}]") for index, one in enumerate(value) if one)
        elif value:
            yield _Place(holder, key, f"{where}{key}")


def _is_folder(name: Any) -> bool:
    """Whether a model's name is a path: the rest are names and hub ids, also where a folder is called so."""
    text = str(name)
    return text.startswith((HASHED, "/", ".", "~")) or (ROOT / text / "config.json").is_file()


def _fill(places: list[_Place], given: list[str], option: str, kind: str, run: Run) -> None:
    """Put paths of this machine where the run's were, every missing one once."""
    missing: dict[str, list[_Place]] = {}
    for place in places:
        here = _here(str(place.value))
        if here is None:
            missing.setdefault(str(place.value), []).append(place)
        else:
            place.holder[place.key] = here
    if len(given) != len(missing):
        wanted = ", ".join(f"{same[0].where} ({name})" for name, same in missing.items()) or "none"
        again = f"; give {option} PATH, {len(missing)} times in this order" if len(missing) > 1 else ""
        again = f"; give it with {option} PATH" if len(missing) == 1 else again
        raise UsageError(f"{run.folder}: {kind}s that are not in this checkout: {wanted}, given: {len(given)}{again}")
    for path, same in zip(given, missing.values(), strict=True):
        hub = hub_file.parse(path) is not None
        if not hub and not Path(path).exists():
            raise UsageError(f"{option} {path}: no such {kind}")
        for place in same:
            place.holder[place.key] = path if hub else str(Path(path).resolve())


def _here(name: str) -> str | None:
    """The path in this checkout; None for one that is hashed, missing or leads elsewhere. A hub is everywhere."""
    if hub_file.parse(name):
        return name
    path = (ROOT / name).resolve()
    return str(path) if path.is_relative_to(ROOT.resolve()) and path.exists() else None
