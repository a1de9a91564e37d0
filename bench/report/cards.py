"""`list`, `show` and the plan of `--dry-run`, for the terminal."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import model_names, registry, suites
from bench.plan import Stage
from bench.shapes import SYNTHETIC, TINY
from bench.technique import Technique


def listing(console: Console) -> None:
    """All techniques and workloads by family, models and configs."""
    for family in registry.families():
        console.print(f"\n[bold]{family}[/bold]")
        drawn = Table(box=None, pad_edge=False, show_header=False)
        for entry in registry.techniques.of_family(family):
            mark = "*" if entry.cls.baseline else "=" if entry.cls.peer else " "
            text = f"preset of {registry.stem(entry.cls)}" if entry.is_preset else entry.summary
            text += "".join(f" [{label}]" for label in entry.cls.labels)
            drawn.add_row(f" {mark} {entry.name}", escape(text))
        for workload in registry.workloads.of_family(family):
            drawn.add_row(f" ? {workload.name}", escape(workload.summary))
        console.print(drawn)
    console.print("\n* baseline   = library peer   ? workload", style="dim")
    names = [*model_names.EMBEDDED, *(f"tiny:{s}" for s in TINY), *(f"synthetic:{s}" for s in SYNTHETIC)]
    console.print(f"\n[bold]models[/bold]\n {', '.join(names)}, owner/name of the hub, a folder")
    console.print(f"\n[bold]configs[/bold]\n {', '.join(suites.named())}")
    broken_plugins(console)


def broken_plugins(console: Console) -> None:
    for plugin in registry.broken:
        console.print(f"plug-in {plugin.module} could not be imported: {escape(plugin.reason)}", style="red")


def card(name: str, console: Console) -> None:
    """Parameters with bounds and defaults, source and claims of one technique or workload.

    Raises:
        UsageError: no such name.
    """
    entry: registry.Entry[Any]
    if name in registry.workloads and name not in registry.techniques:
        entry = registry.workloads[name]
    else:
        entry = registry.techniques[name]
    cls = entry.cls
    kind = "technique" if issubclass(cls, Technique) else "workload"
    labels = "".join(f" · {label}" for label in getattr(cls, "labels", ()))
    console.print(f"[bold]{entry.name}[/bold] · {kind} · {cls.family}{labels}\n")
    console.print(inspect.cleandoc(cls.__doc__ or ""), markup=False, highlight=False)
    console.print(f"\nsource: {cls.source}", markup=False, highlight=False)
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("parameter", "type", "default", "bounds", "meaning"):
        drawn.add_column(title, overflow="fold")
    for field, info in cls.model_fields.items():
        default = entry.parameters.get(field, info.get_default())
        drawn.add_row(field, _type(info), repr(default), _bounds(info), escape(info.description or ""))
    console.print()
    console.print(drawn)
    if cls.presets:
        console.print("\npresets")
        for preset, parameters in cls.presets.items():
            console.print(f" {preset}: {parameters}", markup=False, highlight=False)
    for claim in getattr(cls, "claims", ()):
        console.print(f"\nclaim {claim.name}: {claim.statement} ({claim.source})", markup=False, highlight=False)
        console.print(f"  {claim.expression}: {claim.expected}", markup=False, highlight=False)


def plan(stages: Iterable[Stage], console: Console) -> None:
    """Processes, their start and the work, line by line."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("comparison", "stage", "processes", "start", "work"):
        drawn.add_column(title, justify="left" if title in {"comparison", "stage"} else "right")
    listed = list(stages)
    for stage in listed:
        work = "unknown" if stage.work is None else f"{stage.work:.0f} s"
        drawn.add_row(stage.comparison, stage.what, str(stage.processes), f"{stage.start:.0f} s", work)
    console.print(drawn)
    total = sum(stage.total for stage in listed)
    console.print(f"{sum(s.processes for s in listed)} processes, about {total / 60:.1f} min")
    if any(stage.work is None for stage in listed):
        console.print("the model's size is not known before it is fetched: its work is not in the sum", style="yellow")


def _type(info: FieldInfo) -> str:
    return str(info.annotation).replace("typing.", "") if info.annotation.__module__ == "typing" else _name(info)


def _name(info: FieldInfo) -> str:
    annotation = info.annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _bounds(info: FieldInfo) -> str:
    found = []
    for constraint in info.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            bound = getattr(constraint, attribute, None)
            if bound is not None:
                found.append(f"{sign} {bound}")
    return ", ".join(found)
