"""From what stands on the command line to a config: a file, a name under configs/, a family, techniques."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import model_names, registry, yaml_file
from bench.errors import UsageError
from bench.manifest import ROOT, resolve_device
from bench.settings import Settings

CONFIGS = ROOT / "configs"
NAMED = 5
"""So many keys that one that means nothing may have stood for are named at most."""
Raw = dict[str, Any]


def named() -> dict[str, Path]:
    """Name -> file, of all configs that come with the program: `cpu`, `smoke`, `decoding`, `gpu/default` ..."""
    return {str(f.relative_to(CONFIGS).with_suffix("")): f for f in sorted(CONFIGS.rglob("*.yaml"))}


def find(wanted: Iterable[str], device: str = "auto") -> tuple[Raw, str]:
    """The config that the arguments mean, and its name for error messages.

    Raises:
        UsageError: an argument is neither a file nor a known name.
    """
    words = list(wanted)
    if not words:
        words = [default(device)]
    found = [_one(word) for word in words]
    merged = copy.deepcopy(found[0])
    for other in found[1:]:
        merged["comparisons"] = [*merged.get("comparisons", []), *other.get("comparisons", [])]
    return _joined(merged), " ".join(words)


def default(device: str = "auto") -> str:
    """The suite for this machine: a GPU's where one is seen, with a hub's model where that can be had."""
    if resolve_device(device) == "cpu":
        return "cpu"
    model = yaml_file.load(named()["gpu/default"])["model"]
    return "gpu/default" if model_names.at_hand(model) else "gpu/offline"


def retarget(raw: Raw, model: str) -> Raw:
    """The same config with another target in every comparison."""
    blocks = [
        {key: value for key, value in block.items() if key != "model"} if isinstance(block, dict) else block
        for block in raw.get("comparisons") or []
    ]
    return {**raw, "model": model, "comparisons": blocks}


def _one(word: str) -> Raw:
    configs = named()
    if word in configs:
        return yaml_file.load(configs[word])
    if word.endswith((".yaml", ".yml")) or Path(word).is_file():
        return yaml_file.load(Path(word))
    registry.load_plugins()
    if word in registry.techniques:
        return _technique(word)
    if word in registry.workloads:
        family = registry.workloads[word].cls.family
        raise UsageError(f"{word!r} is a workload; run the family {family!r}, or a config of your own that names it")
    near = registry.did_you_mean(word, [*configs, *registry.techniques], registry.LIST)
    raise UsageError(f"{word!r} is no config, family or technique{near} (or give the path of a file)")


def _technique(name: str) -> Raw:
    """One technique and its family's baseline, on the workload and with the parameters that the family's config has
    first."""
    family = registry.techniques[name].cls.family
    if family not in named():
        raise UsageError(f"the family {family!r} has no config under configs/; write one that names a workload")
    raw = yaml_file.load(named()[family])
    first = raw["comparisons"][0]
    baselines = [arm for arm in first["arms"] if registry.techniques[_name(arm)].cls.baseline]
    own = next((arm for arm in first["arms"] if _name(arm) == name), name)
    arms = baselines if own in baselines else [*baselines, own]
    return {**raw, "name": name, "comparisons": [{**first, "arms": arms}]}


def _joined(raw: Raw) -> Raw:
    """Comparisons on the same workload with the same baseline become one: arms that stand twice once."""
    joined: list[Any] = []
    for block in raw.get("comparisons") or []:
        same = [
            other
            for other in joined
            if isinstance(block, dict)
            and all(other.get(key) == block.get(key) for key in ("workload", "model", "bursts", "baseline"))
        ]
        if same:
            same[0]["arms"] = [*same[0]["arms"], *(arm for arm in block["arms"] if arm not in same[0]["arms"])]
        else:
            joined.append(block)
    return {**raw, "comparisons": joined} if joined else raw


def _name(item: Any) -> str:
    if isinstance(item, Mapping):
        return str(item.get("technique") or item.get("name"))
    return str(item)


def override(raw: Raw, settings: Iterable[str]) -> Raw:
    """Apply `--set KEY=VALUE`: KEY is a setting, `workload.FIELD`, `NAME.FIELD` or a workload's FIELD.

    A list of values, `1,4,16`, spans an axis.

    Raises:
        UsageError: the key means nothing in this config.
    """
    raw = copy.deepcopy(raw)
    registry.load_plugins()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r}: write KEY=VALUE, as workload.items=16")
        value = _value(text)
        owner, dot, field = key.strip().rpartition(".")
        if not dot and field in Settings.model_fields:
            raw[field] = value
            for block in raw.get("comparisons") or []:
                if isinstance(block, dict):
                    block.pop(field, None)  # what the command line says holds everywhere
        elif not _apply(raw, owner, field, value):
            raise UsageError(f"--set {key}: nothing in this config has it{_meant(key.strip(), _keys(raw))}")
    return raw


def with_text(raw: Raw, field: str, text: str) -> Raw:
    """Set a field of every workload that has it to a text as it stands: a path or a program may hold any mark.

    Raises:
        UsageError: no workload has it.
    """
    raw = copy.deepcopy(raw)
    registry.load_plugins()
    if not _apply(raw, "workload", field, text):
        raise UsageError(f"workload.{field}: nothing in this config has it")
    return raw


def _value(text: str) -> Any:
    parts = [yaml_file.parse(part, "--set") for part in text.split(",")]
    return parts[0] if len(parts) == 1 else parts


def _apply(raw: Raw, owner: str, field: str, value: Any) -> bool:
    applied = False
    for block in raw.get("comparisons") or []:
        if not isinstance(block, dict):
            continue
        name = _name(block.get("workload"))
        if owner in {"", "workload", name} and _has(registry.workloads, name, field):
            block["workload"] = {**_mapping(block["workload"], "name"), field: value}
            applied = True
        for index, arm in enumerate(block.get("arms") or []):
            if owner == _name(arm) and _has(registry.techniques, owner, field):
                block["arms"][index] = {**_mapping(arm, "technique"), field: value}
                applied = True
    return applied


def _meant(key: str, keys: list[str]) -> str:
    """The keys that end as this one, whose owner is missing or another one; else the nearest."""
    owned = [repr(one) for one in keys if one.endswith(f".{key.rpartition('.')[2]}")]
    if not owned:
        return registry.did_you_mean(key, keys, listed_by="bench show NAME")
    more = f" or {len(owned) - NAMED} more" if len(owned) > NAMED else ""
    return f"; did you mean {' or '.join(owned[:NAMED])}{more}?"


def _keys(raw: Raw) -> list[str]:
    keys = list(Settings.model_fields)
    for block in raw.get("comparisons") or []:
        name = _name(block.get("workload"))
        if name in registry.workloads:
            keys += [f"workload.{field}" for field in registry.workloads[name].cls.model_fields]
        for arm in map(_name, block.get("arms") or []):
            if arm in registry.techniques:
                keys += [f"{arm}.{field}" for field in registry.techniques[arm].cls.model_fields]
    return sorted(set(keys))


def _has(catalogue: Mapping[str, Any], name: str, field: str) -> bool:
    return name in catalogue and field in catalogue[name].cls.model_fields


def _mapping(item: Any, key: str) -> dict[str, Any]:
    return dict(item) if isinstance(item, Mapping) else {key: item}
