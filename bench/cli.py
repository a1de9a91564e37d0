"""The command line: argument parsing only.

Exit codes: 0 all well, 1 a regression or a failed gate, 2 wrong usage, 3 some cells did not finish.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.report.table import Row

app = typer.Typer(
    name="bench",
    help="Does this LLM-efficiency technique pay on your model and your machine?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Wanted = Annotated[list[str] | None, typer.Argument(help="Configs, families or techniques; nothing: the suite.")]
Model = Annotated[str | None, typer.Option("--model", help="smollm2-135m, tiny:*, synthetic:*, hub id or folder.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; a list of values spans an axis.")]


@app.command()
def run(
    wanted: Wanted = None,
    model: Model = None,
    draft: Annotated[str | None, typer.Option(help="Draft model of speculative techniques.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your own data, for every workload that reads a file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go [results/].")] = None,
    max_time: Annotated[str | None, typer.Option(help="Limit of the whole run: 90s, 20m, 2h.")] = None,
    settings: Sets = None,
    seed: Annotated[int | None, typer.Option(help="The one seed to run.")] = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest sizes, inline; stamped, never published.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this config.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per event.")] = False,
) -> None:
    """Measure techniques against their baselines and write a run to results/."""
    from rich.console import Console

    from bench import api, plan, suites
    from bench.report import cards, terminal

    raw, origin = suites.find(wanted or [], device or "auto")
    given = {"draft": draft, "max_time": max_time, "device": device, "quick": quick or None}
    raw.update({key: value for key, value in given.items() if value is not None})
    if model is not None:
        raw = suites.retarget(raw, model)
    if seed is not None:
        raw["seeds"] = [seed]
    raw = suites.override(raw, settings or [])
    if data is not None:
        if not data.exists():
            raise UsageError(f"--data {data}: no such file")
        raw = suites.override(raw, [f"workload.path={data}"])
    console = _console()
    if dry_run:
        checked, kind, dtype = api.prepare(raw, origin)
        cards.plan(plan.stages(checked, kind, dtype), console)
        return
    progress = terminal.Progress(console, as_json)

    def say(event: dict[str, Any]) -> None:
        progress(event)
        if event["event"] == "comparison" and not as_json:
            from bench import store
            from bench.report import table

            shown = table.rows(store.Run(Path(progress.folder)).records([]))
            terminal.draw_one(event["comparison"], shown[event["comparison"]], console)

    try:
        done = api.run(raw, out, resume, say, tuple(sys.argv[1:]), origin=origin)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; finished cells are kept: the same command with --resume goes on")
        raise typer.Exit(130) from None
    if not as_json:
        console.print(f"\n{done.folder}/report.md", highlight=False, soft_wrap=True)
    raise typer.Exit(_exit_code(done.rows()))


@app.command("list")
def list_() -> None:
    """Techniques and workloads by family, models, configs."""
    from bench import registry
    from bench.report import cards

    registry.load_plugins()
    cards.listing(_console())


@app.command()
def show(name: str) -> None:
    """Parameters, bounds, source and claims of a technique or workload."""
    from bench import registry
    from bench.report import cards

    registry.load_plugins()
    cards.card(name, _console())


@app.command()
def validate(configs: list[str]) -> None:
    """Check configs and name every mistake."""
    from bench import experiment, suites

    for config in configs:
        checked = experiment.check(*suites.find([config]))
        cells = list(checked.cells())
        _console().print(f"{config}: {len(cells)} cells in {len(checked.comparisons)} comparisons", highlight=False)


@app.command()
def doctor(device: Device = None) -> None:
    """What this machine is, and what on it would spoil a measurement."""
    from bench import doctor as examination

    console = _console()
    for finding in examination.examine(device or "auto"):
        mark = "!" if finding.remedy else " "
        console.print(f"{mark} {finding.name:9} {finding.text}", highlight=False, markup=False)
        if finding.remedy:
            console.print(f"            -> {finding.remedy}", style="yellow", highlight=False, markup=False)


@app.command()
def report(runs: list[Path]) -> None:
    """Draw tables and report.md of runs again, from their records."""
    from bench import store
    from bench.report import files, table, terminal

    console = _console()
    for folder in runs:
        opened = store.Run.open(folder)
        damaged = files.write(opened)
        terminal.draw(table.rows(opened.records(damaged=[])), console)
        for line in damaged:
            console.print(f"left out: {line}", style="red", markup=False)


@app.command()
def compare(
    run_a: Path,
    run_b: Path,
    force: Annotated[bool, typer.Option("--force", help="Compare although model, data or device differ.")] = False,
) -> None:
    """The second run against the first, arm by arm, on the primary metrics."""
    from bench import store
    from bench.report import compare as comparing
    from bench.report import terminal

    found, differing = comparing.changes(store.Run.open(run_a), store.Run.open(run_b), force)
    console = _console()
    for line in differing:
        console.print(f"warning: {line}", style="yellow", markup=False)
    terminal.draw_changes(found, console)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # a pipe has no width: let tables be as wide as they need
    return console if console.is_terminal else Console(width=200)


def _exit_code(comparisons: dict[str, list[Row]]) -> int:
    statuses = {row.status for rows in comparisons.values() for row in rows}
    if "invalid" in statuses:
        return 1
    return 3 if statuses & {"oom", "failed", "timeout", "skipped"} else 0


def main() -> None:
    """The console script."""
    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
