"""A config -> an experiment -> its comparisons and cells. Every mistake is reported at once, before a model is loaded.

A comparison is one workload with its arms, one of them the baseline. A cell is one arm under one seed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from bench import model_names, registry
from bench.errors import ConfigError, Problem, UsageError
from bench.settings import MOST_BURSTS, Settings
from bench.technique import Technique
from bench.workload import Workload, content_hash

_BLOCK = ("workload", "arms", "baseline", "model", "bursts")


@dataclass(frozen=True)
class Arm:
    """One technique with its parameters."""

    label: str
    technique: Technique
    registered: str
    """The name it was asked for by: a technique's or a preset's."""

    @property
    def name(self) -> str:
        return registry.stem(type(self.technique))


@dataclass(frozen=True)
class Comparison:
    """One workload and the arms that are compared on it, the baseline first."""

    id: str
    workload: Workload
    arms: tuple[Arm, ...]
    model: str = ""
    """The target, where it is not the experiment's."""
    bursts: int = 0
    """Timed bursts per process, where it is not the experiment's number."""

    @property
    def family(self) -> str:
        return self.workload.family

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def workload_name(self) -> str:
        return registry.stem(type(self.workload))


@dataclass(frozen=True)
class Cell:
    """One arm under one seed: what ends as a record."""

    comparison: Comparison
    arm: Arm
    seed: int

    @property
    def id(self) -> str:
        return f"{self.comparison.id}.{slug(self.arm.label)}.seed{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """A checked config."""

    settings: Settings
    comparisons: tuple[Comparison, ...]
    raw: Mapping[str, Any] = field(repr=False)
    """The config as it was read, with what the command line set: enough to run it again."""

    def cells(self, comparison: Comparison | None = None) -> Iterator[Cell]:
        for one in [comparison] if comparison else self.comparisons:
            for seed, arm in itertools.product(self.settings.seeds, one.arms):
                yield Cell(one, arm, seed)

    @property
    def models(self) -> list[str]:
        """All that the comparisons read: the targets and their helper networks."""
        targets = {one.model for one in self.comparisons}
        return sorted(targets.union(*(self.settings.helpers_of(target).values() for target in targets)))

    @property
    def hash(self) -> str:
        return content_hash(self.raw)


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^a-z0-9_=.-]+", "_", label.lower()).strip("_.")


def check(data: Mapping[str, Any], origin: str, weights: bool = True) -> Experiment:
    """Turn a config into an experiment.

    Args:
        weights: whether a model's folder must hold some.

    Raises:
        ConfigError: with all mistakes, each under the path of its field.
    """
    registry.load_plugins()
    problems: list[Problem] = []
    head = {key: value for key, value in data.items() if key != "comparisons"}
    settings = _validated(Settings, head, "", problems)
    for role in ("model", "draft", "reference"):
        if isinstance(head.get(role), str):
            _check_model(head[role], role, problems, weights)
    comparisons: list[Comparison] = []
    blocks = data.get("comparisons")
    if not isinstance(blocks, list) or not blocks:
        problems.append(Problem("comparisons", "a list of at least one comparison is needed"))
        blocks = []
    for index, block in enumerate(blocks):
        comparisons += _comparisons(block, f"comparisons[{index}]", problems, weights)
    if problems or settings is None:
        raise ConfigError(origin, problems)
    if settings.quick:
        settings = settings.model_copy(update={"replicates": 1, "extend": False, "bursts": 1, "inline": True})
        comparisons = [replace(one, workload=one.workload.quick(), bursts=1) for one in comparisons]
    targeted = (
        replace(one, model=one.model or settings.model, bursts=one.bursts or settings.bursts) for one in comparisons
    )
    return Experiment(settings, tuple(_with_ids(targeted)), dict(data))


def _with_ids(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    used: dict[str, int] = {}
    for one in comparisons:
        name = f"{one.family}.{one.workload_name}"
        used[name] = used.get(name, 0) + 1
        yield replace(one, id=name if used[name] == 1 else f"{name}-{used[name]}")


def _comparisons(block: Any, path: str, problems: list[Problem], weights: bool) -> list[Comparison]:
    if not isinstance(block, dict):
        problems.append(Problem(path, "a mapping with `workload` and `arms` is expected"))
        return []
    for key in sorted(set(block) - set(_BLOCK), key=str):
        near = registry.did_you_mean(str(key), list(_BLOCK))
        problems.append(Problem(f"{path}.{key}", f"unknown field{near}"))
    model = block.get("model", "")
    if model:
        _check_model(model, f"{path}.model", problems, weights)
    workloads = _workloads(block.get("workload"), f"{path}.workload", problems)
    arms: list[Arm] = []
    listed = block.get("arms")
    if not isinstance(listed, list) or not listed:
        problems.append(Problem(f"{path}.arms", "a list of at least one technique is needed"))
        listed = []
    for index, item in enumerate(listed):
        arms += _arms(item, f"{path}.arms[{index}]", problems)
    labels = [arm.label for arm in arms]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(Problem(f"{path}.arms", f"two arms are called {label!r}; give one of them a `label`"))
    family = workloads[0].family if workloads else None
    for arm in arms:
        if family and arm.technique.family != family:
            problems.append(
                Problem(
                    f"{path}.arms",
                    f"{arm.registered!r} is a technique of the family {arm.technique.family}, the workload is "
                    f"of {family}",
                )
            )
    ordered = _baseline_first(arms, block.get("baseline"), path, problems)
    bursts = block.get("bursts", 0)
    if "bursts" in block and not (type(bursts) is int and 1 <= bursts <= MOST_BURSTS):
        problems.append(Problem(f"{path}.bursts", f"{bursts!r}: a number from 1 to {MOST_BURSTS} is expected"))
    return [Comparison("", workload, ordered, model, bursts) for workload in workloads]


def _check_model(name: Any, path: str, problems: list[Problem], weights: bool) -> None:
    try:
        model_names.kind_of(str(name), weights)
    except UsageError as error:
        problems.append(Problem(path, str(error)))


def _baseline_first(arms: list[Arm], wanted: Any, path: str, problems: list[Problem]) -> tuple[Arm, ...]:
    if wanted is not None:
        found = [arm for arm in arms if arm.label == wanted]
        if not found:
            near = registry.did_you_mean(str(wanted), [arm.label for arm in arms])
            problems.append(Problem(f"{path}.baseline", f"{wanted!r} is not among the arms{near}"))
    else:
        found = [arm for arm in arms if arm.technique.baseline]
        if arms and not found:
            baselines = [e.name for e in registry.techniques.of_family(arms[0].technique.family) if e.cls.baseline]
            problems.append(
                Problem(f"{path}.arms", f"no baseline among the arms; add one of {', '.join(sorted(baselines))}")
            )
    return tuple(found[:1] + [arm for arm in arms if arm not in found[:1]])


def _workloads(item: Any, path: str, problems: list[Problem]) -> list[Workload]:
    name, parameters = _named(item, "name", path, problems)
    if name is None:
        return []
    try:
        entry = registry.workloads[name]
    except UsageError as error:
        problems.append(Problem(path, str(error)))
        return []
    found = []
    for chosen, _ in _axes(entry.cls, {**entry.parameters, **parameters}):
        instance = _validated(entry.cls, chosen, path, problems)
        if instance is None:
            continue
        try:
            instance.check()
        except UsageError as error:
            problems.append(Problem(path, str(error)))
        found.append(instance)
    return found


def _arms(item: Any, path: str, problems: list[Problem]) -> list[Arm]:
    name, parameters = _named(item, "technique", path, problems)
    if name is None:
        return []
    label = parameters.pop("label", None)
    try:
        entry = registry.techniques[name]
    except UsageError as error:
        problems.append(Problem(path, str(error)))
        return []
    arms = []
    for chosen, point in _axes(entry.cls, {**entry.parameters, **parameters}):
        instance = _validated(entry.cls, chosen, path, problems)
        if instance is not None:
            suffix = f"({', '.join(f'{k}={v}' for k, v in point.items())})" if point else ""
            arms.append(Arm(f"{label or name}{suffix}", instance, name))
    return arms


def _named(item: Any, key: str, path: str, problems: list[Problem]) -> tuple[str | None, dict[str, Any]]:
    """A bare name, or a mapping with the name under `key` and parameters beside it."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, dict) and isinstance(item.get(key), str):
        return item[key], {k: v for k, v in item.items() if k != key}
    problems.append(Problem(path, f"a name, or a mapping with `{key}: NAME` and parameters, is expected"))
    return None, {}


def _axes(cls: type[BaseModel], parameters: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every point of the grid that lists span, with the part of it that varies."""
    grid = {key: value for key, value in parameters.items() if isinstance(value, list) and not _takes_list(cls, key)}
    for point in itertools.product(*grid.values()):
        chosen = dict(zip(grid, point, strict=True))
        yield {**parameters, **chosen}, chosen


def _takes_list(cls: type[BaseModel], key: str) -> bool:
    info = cls.model_fields.get(key)
    return info is not None and any(
        get_origin(part) in {list, tuple, set, frozenset}
        for part in (info.annotation, *getattr(info.annotation, "__args__", ()))
    )


def _validated(cls: type[Any], values: Mapping[str, Any], path: str, problems: list[Problem]) -> Any:
    try:
        return cls(**values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problems.append(_problem(cls, detail, path))
        return None


def _problem(cls: type[BaseModel], detail: Any, path: str) -> Problem:
    where = ".".join(str(part) for part in detail["loc"])
    full = f"{path}.{where}".strip(".")
    if detail["type"] == "extra_forbidden":
        return Problem(full, f"unknown parameter{registry.did_you_mean(where, list(cls.model_fields))}")
    if detail["type"] == "missing":
        return Problem(full, "is required")
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "tuple_type":
        message = "a list is expected, as [0, 1, 2]"
    value = detail.get("input")
    shown = "" if isinstance(value, dict) else f"{value!r}: "
    return Problem(full, f"{shown}{message[0].lower()}{message[1:]}")
