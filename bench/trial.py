"""A run of one's own for a paper's claims: the arms that their figures speak of, beside the family's baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import api, embedded, manifest, registry, store
from bench.anonymous import anonymous
from bench.claim import Claim, Figure, meets
from bench.errors import StoreError, Unsupported, UsageError
from bench.families.cache import check_length
from bench.models import Source
from bench.registry import Entry
from bench.runner import Event
from bench.technique import Technique

NAME = "claims"
REPLICATES = 5
MAX_TIME = "60m"
TRAINED = "stdlib-4m"
"""A model whose weights were never quantised."""


def config(entries: Iterable[Entry[Technique]], model: str | None = None) -> dict[str, Any]:
    """What `bench run` takes: one comparison for each workload and model that the claims of these techniques ask for,
    with each arm once; without the claims that this model can say nothing of (`left_out`).

    Args:
        model: of the user; else the embedded one, and for claims of weights that were never quantised the trained one.
    """
    comparisons: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for claim in entry.cls.claims:
            if left_out(claim, model):
                continue
            named = {"model": on} if (on := _model_for(claim, model)) != embedded.NAME and model is None else {}
            key = json.dumps([entry.cls.family, dict(claim.workload), named], sort_keys=True)
            arms = {"": {"technique": baseline(entry.cls.family)}}
            asked = comparisons.setdefault(key, {**named, "workload": dict(claim.workload), "arms": arms})
            asked["arms"] |= {_label(figure): _arm(figure) for figure in claim.parsed.figures}
    listed = [{**one, "arms": _distinct(one["arms"].values())} for one in comparisons.values()]
    return {"name": NAME, "replicates": REPLICATES, "max_time": MAX_TIME, "profile": True, "comparisons": listed}


def left_out(claim: Claim, model: str | None = None) -> str:
    """Why a run of one's own can say nothing of a claim; '' where it can.

    Args:
        model: as of `config`.

    Raises:
        ModelError: its configuration cannot be read.
    """
    on, wanted = _model_for(claim, model), claim.needs.get("model")
    if wanted is not None and not meets(on, wanted):
        return f"it needs the model {wanted.replace('|', ' or ')}, not {on}"
    tokens = int(claim.workload.get("context", 0)) + int(claim.workload.get("new_tokens", 1))
    try:
        check_length(Source(on).config, tokens)
    except Unsupported as error:
        return str(error)
    return ""


def _model_for(claim: Claim, model: str | None) -> str:
    return model or (TRAINED if claim.needs.get("weights") == "trained" else embedded.NAME)


def baseline(family: str) -> str:
    """The technique that the family's others are compared with."""
    return next(entry.name for entry in registry.techniques.of_family(family) if entry.cls.baseline)


def run(
    entries: Iterable[Entry[Technique]],
    out: Path,
    say: Callable[[Event], None] = lambda event: None,
    argv: tuple[str, ...] = (),
    **wanted: Any,
) -> store.Run:
    """The run of this config in this environment: the one that is stored, if it is whole, else a new one.

    Args:
        wanted: as `api.prepare` takes it: model, device, quick ...

    Raises:
        UsageError: the config does not fit the model or the time, or no claim can be looked at with this model.
        Busy: another run is timing on this machine.
    """
    entries, model = list(entries), wanted.get("model")
    raw = config(entries, model)
    for entry in entries:
        for claim in entry.cls.claims:
            if why := left_out(claim, model):
                say({"event": "note", "text": f"left out: {entry.name}.{claim.name}: {why}"})
    if not raw["comparisons"]:
        raise UsageError("no claim of these can be looked at with this model; give another with --model")
    checked, device, dtype = api.prepare(raw, NAME, **wanted)
    about = anonymous(manifest.collect(device, dtype, argv))
    known = stored(out, checked.settings.name, checked.hash, about, quick=checked.settings.quick)
    return known or api.run(raw, out, say=say, argv=argv, origin=NAME, **wanted).store


def stored(
    out: Path, experiment: str, config_sha256: str, environment: Mapping[str, Any], quick: bool = False
) -> store.Run | None:
    """The newest run of this config, if all its cells ended well and the environment is the same.

    Disturbed runs and those of changed code do not count, and quick ones only where a quick one is wanted.
    """
    try:
        found = store.newest(out, experiment, config_sha256, ["quick"] if quick else [])
        about = found.manifest
    except (UsageError, StoreError):
        return None
    ended = {record["cell"]: record["status"] for record in found.records(damaged=[])}
    whole = all(ended.get(cell) in {"ok", "unsupported"} for cell in about.get("cells", ()))
    return found if whole and not manifest.lasting_differences(about["environment"], environment) else None


def _label(figure: Figure) -> str:
    return "_".join([figure.arm, *(f"{key}={value}" for key, value in figure.parameters.items())])


def _arm(figure: Figure) -> dict[str, Any]:
    named = {"label": _label(figure)} if figure.parameters else {}
    return {"technique": figure.arm, **named, **figure.parameters}


def _distinct(arms: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm once, whatever of its parameters is written out; under the shortest label."""
    found: dict[Any, dict[str, Any]] = {}
    for arm in sorted(arms, key=lambda arm: len(arm.get("label", ""))):
        entry = registry.techniques[arm["technique"]]
        given = {key: value for key, value in arm.items() if key not in {"technique", "label"}}
        technique = entry.cls(**{**entry.parameters, **given})
        found.setdefault((entry.name, technique.model_dump_json()), arm)
    return list(found.values())
