"""Plug-ins are found by name: `@register` puts a class here, entry points bring the modules in.

Our own techniques and workloads come in by the same door as anybody's: the entry point group `bench.plugins`.
An entry point names a module or a package; of a package every module is imported (`core` and `micro` apart).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from bench.errors import BenchError, UsageError
from bench.technique import Technique
from bench.workload import Workload

GROUP = "bench.plugins"
NOT_PLUGINS = {"core", "micro"}
LIST = "bench list"
"""The command that lists what is registered."""
LINE = 20
"""So many names at most stand in an error message."""

P = TypeVar("P", bound=Technique | Workload)


@dataclass(frozen=True)
class Entry(Generic[P]):
    """A registered name: a class, with the parameters that a preset sets."""

    name: str
    cls: type[P]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_preset(self) -> bool:
        return self.name != stem(self.cls)

    @property
    def summary(self) -> str:
        """First sentence of the card."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Broken:
    """A plug-in that could not be imported; the rest goes on."""

    module: str
    reason: str


def stem(cls: type) -> str:
    """The name of a plug-in: its file's."""
    return cls.__module__.rpartition(".")[2]


class Catalogue(Mapping[str, Entry[P]]):
    """Names of one kind of plug-in."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[P]] = {}

    def add(self, cls: type[P]) -> None:
        name = stem(cls)
        camel = "".join(part.capitalize() for part in name.split("_"))
        if cls.__name__.lower() != camel.lower():
            raise BenchError(
                f"{self.kind} {cls.__module__}.{cls.__name__}: a file named {name}.py holds {camel}; "
                f"rename one of the two"
            )
        for key, parameters in {name: {}, **cls.presets}.items():
            known = self._entries.get(key)
            if known is not None and known.cls.__module__ != cls.__module__:
                raise BenchError(
                    f"{self.kind} {key!r} is registered twice: by {known.cls.__module__} and {cls.__module__}"
                )
            self._entries[key] = Entry(key, cls, parameters)

    def discard(self, module: str) -> None:
        self._entries = {k: e for k, e in self._entries.items() if e.cls.__module__ != module}

    def __getitem__(self, name: str) -> Entry[P]:
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries, LIST)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries, key=lambda n: (self._entries[n].cls.family, n)))

    def __len__(self) -> int:
        return len(self._entries)

    def of_family(self, family: str) -> list[Entry[P]]:
        return [entry for entry in self.values() if entry.cls.family == family]


techniques: Catalogue[Technique] = Catalogue("technique")
workloads: Catalogue[Workload] = Catalogue("workload")
broken: list[Broken] = []
_loaded = False

T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Class decorator: make a technique or a workload known under the name of its file."""
    if issubclass(cls, Technique):
        techniques.add(cls)
    elif issubclass(cls, Workload):
        workloads.add(cls)
    else:
        raise BenchError(f"{cls.__module__}.{cls.__name__} is neither a Technique nor a Workload")
    return cls


def load_plugins() -> None:
    """Import every plug-in once. One that fails is named in `broken` and the rest goes on."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        module = _import(point.value)
        if module is not None:
            _import_below(module)


def families() -> list[str]:
    """The families that have techniques, in alphabetical order."""
    return sorted({entry.cls.family for entry in techniques.values()})


def did_you_mean(name: str, allowed: Iterator[str] | Mapping[str, Any] | list[str], listed_by: str = "") -> str:
    """`; did you mean 'x'?`, or the list of what is allowed, or the command that lists what is too much for a line."""
    names = list(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    if listed_by and len(names) > LINE:
        return f"; `{listed_by}` names all"
    return f"; allowed: {', '.join(sorted(names))}" if names else ""


def _import_below(package: ModuleType) -> None:
    for info in pkgutil.iter_modules(getattr(package, "__path__", []), package.__name__ + "."):
        if info.name.rpartition(".")[2] in NOT_PLUGINS:
            continue
        module = _import(info.name)
        if module is not None and info.ispkg:
            _import_below(module)


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception as error:
        # whatever a foreign module raises at import: it is named, the others go on
        for catalogue in (techniques, workloads):
            catalogue.discard(name)
        broken.append(Broken(name, f"{type(error).__name__}: {error}".splitlines()[0]))
        return None
