"""Predictions and their errors, for the terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.predict.check import FAR, Checked
from bench.predict.pace import Pace, paces
from bench.predict.prediction import Fit, Prediction
from bench.report.markdown import cell, grid

JUDGED = ("finetuning", "kv_cache")
"""Families whose peak is a simulated burst's; the others' inputs and lengths depend on what a model writes."""
COLUMNS = ("cell", "model", "device", "seen", "runtime", "predicted", "measured", "error")
TIMES = ("cell", "step", "at least", "predicted", "measured", "error")


def draw(found: Prediction, console: Console, budget: int | None = None) -> None:
    """One prediction: the peak by parts, the time of a step, and what is not in it."""
    setting = found.setting
    console.print(f"\n[bold]{escape(setting.label)}[/] {escape(_subject(found))}", highlight=False)
    parts = Table(box=None, pad_edge=False, show_header=False)
    for name, size in found.parts.items():
        if size:
            parts.add_row(f"  {name.replace('_', ' ')}", _bytes(size), f"{100 * size / found.peak:.0f} %")
    console.print(parts)
    console.print(f"  peak {_bytes(found.peak)}{_reserved(found)}{_fits(found, budget)}", highlight=False, markup=False)
    for kind, seconds in found.seconds.items():
        what = {"decode": "a token", "train": "a step", "prefill": "the prefill", "rollout": "a rollout"}[kind]
        bound = "about" if found.guessed else "at least"
        line = f"  {what}: {bound} {_time(seconds)}, {found.flops[kind] / 1e9:.4g} GFLOP"
        console.print(line, highlight=False, markup=False)
    for line in caveats(found):
        console.print(f"  {line}", style="dim", highlight=False, markup=False)


def caveats(found: Prediction) -> list[str]:
    """What a prediction does not know."""
    kind = found.setting.device.kind
    lines = [f"limits: {found.setting.device.source}"]
    if found.calibration.unseen is None:
        hidden = "the C library's fragments, kernels' scratch, the interpreter" if kind == "cpu" else "workspaces"
        extra = "" if kind == "cpu" else " (cuBLAS), the driver's context, what the GPU's kernels take otherwise"
        lines.append(f"not in it, for want of records of {kind}: {hidden}{extra}")
    else:
        share = f"{100 * found.calibration.unseen:+.0f} %"
        lines.append(f"unseen: {share} of what is seen, the median of {found.calibration.records} records")
    if found.guessed:
        lines.append(f"{found.guessed} numbers that only weights give were taken as 0, answers as yes")
    return lines


def draw_fit(fit: Fit, budget: int, console: Console) -> None:
    """What is the largest that fits, as far as it was searched for."""
    if fit.prediction is None:
        found = f"no {fit.field} fits" if fit.largest else f"no {fit.field} was found that fits"
        console.print(f"\n{found} into {_bytes(budget)}: {fit.beyond}", highlight=False, markup=False)
        return
    found = f"largest {fit.field}" if fit.largest else f"a {fit.field} that fits, perhaps not the largest,"
    line = f"{found} in {_bytes(budget)}: {fit.value}, needs {_bytes(fit.prediction.needed)}; {fit.beyond}"
    console.print(f"\n{line}", highlight=False, markup=False)


def draw_check(cells: Sequence[Checked], console: Console) -> None:
    """A line per cell, and how far the predictions are off."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in COLUMNS:
        table.add_column(title, justify="left" if title in COLUMNS[:3] else "right", overflow="fold")
    for one in cells:
        table.add_row(*map(escape, _line(one)))
    console.print(table)
    times = Table(box=None, pad_edge=False, header_style="dim")
    for title in TIMES:
        times.add_column(title, justify="left" if title in TIMES[:2] else "right", overflow="fold")
    for each in paces(cells):
        times.add_row(*map(escape, _pace(each)))
    if times.row_count:
        console.print(times)
    for line in [*summary(cells), *of_time(cells)]:
        console.print(line, highlight=False, markup=False)


def as_markdown(cells: Sequence[Checked]) -> str:
    """The check as a page."""
    lines = ["# Peak memory and time, predicted and measured", ""]
    lines += [
        "Drawn by `bench predict --check` from the records of the named runs. Predictions are simulated from a model's "
        "configuration and a technique's parameters, without weights; `seen` is what the simulation finds in tensors "
        "and in the allocator's free parts. The process' start, and the share of what is not seen (fragments, "
        "workspaces, libraries), are medians over the other cells: no prediction knows its own measurement. "
        "It is today's code that is simulated: where a record is of older code, the error is of both.",
        "",
        "A step's time is predicted as the shortest that its bytes and operations allow by the device's limits, times "
        "how much longer the same kind of step was in the other cells of the device (median). Of decoding, a step is "
        "a round; what it accepts follows from weights, and is guessed.",
        "",
        *(cell(line) for line in [*summary(cells), *of_time(cells)]),
    ]
    steps = paces(cells)
    for run in dict.fromkeys(one.run for one in cells):
        rows = [tuple(map(cell, _line(one))) for one in cells if one.run == run]
        lines += ["", f"## {cell(run)}", "", *grid(COLUMNS, rows)]
        timed = [tuple(map(cell, _pace(one))) for one in steps if one.run == run]
        if timed:
            lines += ["", *grid(TIMES, timed)]
    return "\n".join(lines) + "\n"


def summary(cells: Iterable[Checked]) -> list[str]:
    """By group of families: how many were predicted, the largest error, and which are far off."""
    lines = []
    all_cells = list(cells)
    for title, chosen in (
        (" and ".join(JUDGED), [one for one in all_cells if one.family in JUDGED]),
        ("other families", [one for one in all_cells if one.family not in JUDGED]),
    ):
        errors = {one.cell: one.error for one in chosen if one.error is not None}
        if not chosen:
            continue
        if not errors:
            lines.append(f"{title}: none of {len(chosen)} cells could be predicted")
            continue
        worst = max(errors, key=lambda name: abs(errors[name] or 0.0))
        far = [name for name, error in errors.items() if abs(error or 0.0) > FAR]
        beyond = f"beyond {100 * FAR:.0f} %: {', '.join(far)}" if far else f"all within {100 * FAR:.0f} %"
        lines.append(
            f"{title}: {len(errors)} of {len(chosen)} cells predicted, "
            f"largest error {100 * (errors[worst] or 0.0):+.1f} % ({worst}); {beyond}"
        )
    return lines


def of_time(cells: Sequence[Checked]) -> list[str]:
    """How many steps' times were predicted, how far they are off, and by which limits."""
    lines = []
    errors = {f"{one.cell} {one.kind}": one.error for one in paces(cells) if one.error is not None}
    if errors:
        worst = max(errors, key=lambda name: abs(errors[name] or 0.0))
        median = statistics.median(abs(error or 0.0) for error in errors.values())
        lines.append(
            f"time: {len(errors)} kinds of step predicted, half of them within {100 * median:.0f} %, "
            f"largest error {100 * (errors[worst] or 0.0):+.0f} % ({worst})"
        )
    limits = {one.device: one.limits for one in cells if one.limits}
    lines += [f"limits of {name}: {source}" for name, source in limits.items()]
    return lines


def _pace(one: Pace) -> tuple[str, ...]:
    error = "no other cell to calibrate with" if one.error is None else f"{100 * one.error:+.0f} %"
    predicted = "-" if one.predicted is None else _time(one.predicted)
    return (one.cell, one.kind, _time(one.least), predicted, _time(one.measured), error)


def _line(one: Checked) -> tuple[str, ...]:
    error = f"{100 * one.error:+.1f} %" if one.error is not None else one.reason
    sizes = (one.seen, one.runtime, one.predicted, one.measured)
    return (one.cell, one.model, one.device, *("-" if size is None else _bytes(size) for size in sizes), error)


def _subject(found: Prediction) -> str:
    setting = found.setting
    workload = type(setting.workload).__module__.rpartition(".")[2]
    return f"on {setting.model}, {workload}, {setting.device.name}, {setting.dtype}"


def _reserved(found: Prediction) -> str:
    if found.reserved == found.peak:
        return ""
    return f"; torch reserves {_bytes(found.reserved)} where there is room, and can do with {_bytes(found.needed)}"


def _fits(found: Prediction, budget: int | None) -> str:
    limit = budget or found.setting.device.memory
    answer = "fits into" if found.needed <= limit else "does not fit into"
    return f"; {answer} {_bytes(limit)}{'' if budget else ' of the device'}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
