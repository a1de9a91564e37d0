"""`bench predict`: the verb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import Unsupported, UsageError
from bench.options import Draft, Model, Reference, Sets, printer

if TYPE_CHECKING:
    from bench.experiment import Experiment
    from bench.predict.check import Checked
    from bench.predict.devices import Device
    from bench.predict.prediction import Setting

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def predict(
    wanted: Annotated[
        list[str] | None, typer.Argument(help="Techniques, families or configs; with --check families.")
    ] = None,
    model: Model = None,
    draft: Draft = None,
    reference: Reference = None,
    settings: Sets = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or one that is not here: h200, h100, a100, a100-40gb.")
    ] = "cpu",
    budget: Annotated[str | None, typer.Option(help="Memory that may be used, as 24GiB [the device's].")] = None,
    largest: Annotated[
        list[str] | None, typer.Option(help="What fits: model, or a field of the workload, as batch_size.")
    ] = None,
    check: Annotated[
        list[Path] | None, typer.Option(help="Instead: predict the cells of a stored run, beside what was measured.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results lie; a check draws predictions.md there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per prediction.")] = False,
) -> None:
    """Peak memory by parts and the shortest time, from a model's configuration alone: no weights, no such device.

    Exit 3: something could not be foreseen.
    """
    if check:
        if model or draft or reference or settings or budget or largest:
            raise UsageError("--check predicts what a run holds: of the other options only --out and --json go with it")
        _check(check, wanted or [], out, as_json)
        return
    if not wanted:
        raise UsageError("predict: name a technique, as qlora, or --check RUN")
    limit = None if budget is None else size(budget)
    helpers = {role: name for role, name in (("draft", draft), ("reference", reference)) if name}
    console, unforeseen = printer(), False
    for setting in _settings(wanted, model, helpers, settings or [], device):
        try:
            _tell(setting, limit, largest or [], out, as_json)
        except Unsupported as error:
            unforeseen = True
            if as_json:
                print(json.dumps({"event": "prediction", "technique": setting.label, "reason": str(error)}), flush=True)
            else:
                console.print(f"\n{setting.label}: {error}", highlight=False, markup=False)
    raise typer.Exit(3 if unforeseen else 0)


def size(text: str) -> int:
    """`24GiB` -> bytes.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?i?B?)\s*", text)
    if not match or match[2] not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is no size of memory; allowed: 24GiB, 80GB, 512MiB")
    return round(float(match[1]) * UNITS[match[2]])


def _settings(
    wanted: list[str], model: str | None, helpers: dict[str, str], settings: list[str], device: str
) -> list[Setting]:
    from bench import experiment, manifest, suites
    from bench.predict import devices

    raw, origin = suites.find(wanted, "cpu")
    if model is not None:
        raw = suites.retarget(raw, model)
    checked = experiment.check(suites.override(raw | helpers, settings), origin, weights=False)
    if device in devices.LISTED:
        dtype = manifest.resolve_dtype(checked.settings.dtype, "cuda")
    else:
        dtype = manifest.resolve_dtype(checked.settings.dtype, device)
    return _arms(checked, devices.find(device, dtype), dtype)


def _arms(checked: Experiment, device: Device, dtype: str) -> list[Setting]:
    from bench.predict.prediction import Setting

    found = []
    for one in checked.comparisons:
        others = checked.settings.helpers_of(one.model)
        found += [
            Setting(arm.label, arm.technique, one.workload, one.model, device, dtype, others, checked.settings.seeds[0])
            for arm in one.arms
        ]
    return found


def _tell(setting: Setting, limit: int | None, fields: list[str], out: Path | None, as_json: bool) -> None:
    from bench import store
    from bench.predict import check, prediction
    from bench.report import predictions

    calibration = check.kept(out or store.results_folder(), setting.device.kind)
    found = prediction.predict(setting, calibration)
    room = limit or setting.device.memory
    fits = [prediction.largest(setting, field, room, calibration) for field in fields]
    if as_json:
        event = {**prediction.as_event(found), "budget": room, "largest": {}, "fits": {}, "beyond": {}}
        for fit in fits:
            event["largest"][fit.field] = fit.value if fit.largest else None
            event["fits"][fit.field], event["beyond"][fit.field] = fit.value, fit.beyond
        print(json.dumps(event), flush=True)
        return
    predictions.draw(found, printer(), limit)
    for fit in fits:
        predictions.draw_fit(fit, room, printer())


def _check(runs: list[Path], families: list[str], out: Path | None, as_json: bool) -> None:
    from bench import store
    from bench.predict import check
    from bench.report import predictions

    folder = out or store.results_folder()
    cells: list[Checked] = []
    for one in check.check([store.Run.open(run) for run in runs], families):
        cells.append(one)
        check.keep(folder, cells)
    if not cells:
        raise UsageError(f"--check: these runs hold no cell of {', '.join(families) or 'any family'}")
    cells = check.calibrated(cells)
    check.keep(folder, cells)
    store.write_text(folder / check.PAGE, predictions.as_markdown(check.stored(folder)))
    if as_json:
        for one in cells:
            print(json.dumps({"event": "checked", **vars(one), "error": one.error}), flush=True)
    else:
        predictions.draw_check(cells, printer())
