"""The command line: argument parsing only.

Exit codes: 0 all well, 1 a regression or a failed gate, 2 wrong usage, 3 some cells did not finish.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bench.checkup import doctor
from bench.errors import BenchError, StoreError, UsageError
from bench.options import Device, Draft, Form, Model, Reference, Sets, Wanted, printer
from bench.outlook import predict

if TYPE_CHECKING:
    from bench.experiment import Experiment
    from bench.outcome import Row

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bench {version('llm-efficiency-bench')}")
        raise typer.Exit


@app.callback()
def bench(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Does this LLM-efficiency technique pay on your model and your machine?"""


@app.command()
def run(
    wanted: Wanted = None,
    model: Model = None,
    draft: Draft = None,
    reference: Reference = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own data, for every workload that reads a file, or hub:OWNER/NAME/FILE.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="What compares answers: a reward or language model, or 'command:PROGRAM'."),
    ] = None,
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
    from bench import api
    from bench.report import terminal
    from bench.report.progress import INTERRUPTED, Progress

    asked: dict[str, Any] = {
        "model": model,
        "draft": draft,
        "reference": reference,
        "data": data,
        "judge": judge,
        "max_time": max_time,
        "seed": seed,
    }
    asked |= {"settings": settings or [], "device": device, "quick": quick or None}
    console = printer()
    if dry_run:
        _plan(*api.prepare(wanted or [], **asked), as_json)
        return
    try:
        with Progress(console, as_json) as progress:
            done = api.run(wanted or [], out, resume, progress, tuple(sys.argv[1:]), **asked)
            progress.exit_code = _exit_code(done.rows())
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept: the same command with --resume goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        terminal.draw_end(done.rows(), done.manifest, console)
        console.print(f"\n{done.folder}/report.html", highlight=False, soft_wrap=True)
    raise typer.Exit(progress.exit_code)


def _plan(checked: Experiment, device: str, dtype: str, as_json: bool) -> None:
    from bench import plan, remaining
    from bench.report import cards

    if as_json:
        print(json.dumps({"event": "plan", "at": 0.0, **remaining.ahead(checked, device, dtype)}), flush=True)
    else:
        cards.plan(plan.stages(checked, device, dtype), printer())


@app.command("list")
def list_() -> None:
    """Techniques and workloads by family, models, configs."""
    from bench import registry
    from bench.report import cards

    registry.load_plugins()
    cards.listing(printer())


@app.command()
def show(name: str) -> None:
    """Parameters, bounds, source and claims of a technique or workload."""
    from bench import registry
    from bench.report import cards

    registry.load_plugins()
    cards.card(name, printer())


@app.command()
def new(
    kind: Annotated[Literal["technique"], typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Lower-case words joined by _, as my_way.")],
    family: Annotated[str, typer.Option(help="decoding, kv_cache, finetuning or preference.")],
) -> None:
    """Write a technique that runs, its test and its config into the checkout."""
    from bench import scaffold

    console = printer()
    for line in scaffold.told(scaffold.technique(name, family)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def validate(configs: list[str]) -> None:
    """Check configs and name every mistake."""
    from bench import experiment, suites

    for config in configs:
        checked = experiment.check(*suites.find([config]))
        cells = list(checked.cells())
        printer().print(f"{config}: {len(cells)} cells in {len(checked.comparisons)} comparisons", highlight=False)


app.command()(doctor)
app.command()(predict)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs.")] = None,
    micro: Annotated[
        Path | None, typer.Option(help="A JSON file of pytest-benchmark: print its pieces as tables in Markdown.")
    ] = None,
) -> None:
    """Draw report.html, report.md and table.csv of runs again, from their records."""
    if micro is not None:
        from bench.report import micro as pieces

        if runs:
            raise UsageError("report draws runs or, with --micro, the file of pytest-benchmark; give one of them")
        print(pieces.as_markdown(*pieces.read(micro)), end="")
        return
    if not runs:
        raise UsageError("report: name the folder of a run, as results/cpu/..., or --micro FILE")
    from bench import outcome, store
    from bench.report import files, terminal

    console = printer()
    unreadable: list[StoreError] = []
    for opened in [store.Run.open(folder) for folder in runs]:
        try:
            damaged = files.write(opened)
        except StoreError as error:
            unreadable.append(error)
            continue
        terminal.draw(outcome.rows(opened.records(damaged=[])), opened.manifest, console)
        for line in damaged:
            console.print(f"left out: {line}", style="red", markup=False)
    for one in unreadable:
        print(f"error: {one}", file=sys.stderr)
    if unreadable:
        raise typer.Exit(StoreError.exit_code)


@app.command()
def compare(
    run_a: Path,
    run_b: Path,
    force: Annotated[bool, typer.Option("--force", help="Compare although model, data or device differ.")] = False,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", help="Limits, as 'throughput<-5%,nll>+0.01': exit 1 beyond them.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="With --fail-on: also where the data cannot tell.")] = False,
    form: Annotated[Form, typer.Option("--format", help="csv and json hold every metric.")] = "table",
) -> None:
    """The second run against the first, arm by arm, on the primary metrics.

    A limit of --fail-on is METRIC, < or >, a sign and a number: with % a share of the first run's figure, else in the
    metric's unit. It fails where the whole interval of the change lies beyond it. An arm that became invalid fails
    too; one that did not finish gives exit 3.
    """
    from bench import comparison, limits, store
    from bench.report import compare as shown

    if strict and fail_on is None:
        raise UsageError("--strict goes with --fail-on")
    asked = () if fail_on is None else limits.parse(fail_on)
    found = comparison.contrast(store.Run.open(run_a), store.Run.open(run_b), force)
    checks = limits.examine(asked, found)
    code = limits.exit_code(checks, found, strict) if asked else 0
    if form == "table":
        shown.draw(found, checks, printer())
    else:
        print({"md": shown.as_markdown, "csv": shown.as_csv, "json": shown.as_json}[form](found, checks), end="")
    raise typer.Exit(code)


@app.command()
def verify(
    techniques: Annotated[list[str] | None, typer.Argument(help="Whose claims; nothing: all.")] = None,
    measure: Annotated[bool, typer.Option("--run", help="Run what is not stored of this machine.")] = False,
    model: Model = None,
    draft: Draft = None,
    device: Device = None,
    quick: Annotated[bool, typer.Option("--quick", help="With --run: smallest sizes; stamped.")] = False,
    max_time: Annotated[str | None, typer.Option(help="With --run: what it may take at most [60m].")] = None,
    foresee: Annotated[bool, typer.Option("--foresee", help="Simulate claims about memory anew: minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where results lie and go [results/].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per claim.")] = False,
) -> None:
    """The papers' claims beside the stored records; without names or --run results/claims.md is drawn too."""
    from bench import registry, store, trial
    from bench import verify as papers
    from bench.predict import foresight
    from bench.report import claims
    from bench.report.progress import Progress

    if not measure and (model or draft or device or quick or max_time):
        raise UsageError("--model, --draft, --device, --quick and --max-time go with --run")
    registry.load_plugins()
    folder = out or store.results_folder()
    entries, runs = papers.with_claims(techniques or []), papers.published(folder)
    if measure:
        with Progress(printer(), as_json) as progress:
            asked = {"model": model, "draft": draft, "device": device, "quick": quick or None, "max_time": max_time}
            runs.insert(0, trial.run(entries, folder, progress, tuple(sys.argv[1:]), **asked))
    if foresee:
        foresight.keep(folder, foresight.foresee(entries))
    said = {claim: one.words for claim, one in foresight.stored(folder).items()}
    ledger = papers.ledger(entries, runs, said)
    claims.tell(ledger, folder, printer(), as_json, keep=not techniques and not measure)


@app.command()
def reproduce(
    run: Path,
    data: Annotated[
        list[Path] | None, typer.Option(help="Your copy of a data file that the run read; once per file.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Your copy of a folder that held a model; once per folder.")
    ] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Where results go [results/].")] = None,
    max_time: Annotated[str | None, typer.Option(help="Limit of the whole run: 90s, 20m, 2h.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    against: Annotated[Path | None, typer.Option(help="Run nothing: a repetition that is there already.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per event.")] = False,
) -> None:
    """Make a run again from its folder, and say which of its verdicts held.

    Exit 0: none was contradicted; 1: one flipped or its intervals lie apart; 3: some cells did not finish.
    """
    from bench import api, rerun, store
    from bench import reproduce as again
    from bench.report import reproduce as shown
    from bench.report.progress import INTERRUPTED, Progress

    first = store.Run.open(run)
    if against is not None:
        if data or model or device or out or max_time or dry_run:
            raise UsageError("--against runs nothing: of the other options only --json goes with it")
        found = again.against(first, store.Run.open(against))
        if as_json:
            print(json.dumps(shown.as_event(found)), flush=True)
    else:
        raw = rerun.settings(first, data or [], model or [], device, max_time)
        if dry_run:
            _plan(*api.prepare(raw, str(run)), as_json)
            return
        try:
            with Progress(printer(), as_json) as progress:
                second = api.run(raw, out, say=progress, argv=tuple(sys.argv[1:]), origin=str(run)).store
                found = again.against(first, second)
                progress.exit_code = found.exit_code
                if as_json:
                    progress(shown.as_event(found))
        except KeyboardInterrupt:
            print(f"interrupted: bench reproduce {run} --against {progress.folder} says what held", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        shown.draw(found, printer())
    raise typer.Exit(found.exit_code)


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
    except BrokenPipeError:  # as of `bench run | head`: there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BenchError.exit_code)


if __name__ == "__main__":
    main()
