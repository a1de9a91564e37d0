"""`bench doctor`: what this machine is, and what on it would spoil a measurement."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import determinism, embedded, lock, manifest, registry, store
from bench.probes import load
from bench.process import available_memory


class Finding(NamedTuple):
    """One line of the examination."""

    name: str
    text: str
    remedy: str = ""
    """What to do; empty where all is well."""


def examine(device: str = "auto") -> Iterator[Finding]:
    """All findings, the harmless ones too."""
    kind = manifest.resolve_device(device)
    facts = manifest.collect(kind, manifest.resolve_dtype("auto", kind))
    yield Finding("device", f"{facts['device']['name']} ({kind}), computing in {facts['device']['dtype']}")
    if kind == "cuda":
        yield _gpu(facts["gpu"])
    cpu = facts["cpu"]
    few = cpu["threads"] > cpu["affinity"]
    yield Finding(
        "threads",
        f"{cpu['threads']} threads on {cpu['affinity']} usable of {cpu['cores']} cores",
        "set OMP_NUM_THREADS to the usable cores" if few else "",
    )
    yield Finding("memory", f"{available_memory() / 1e9:.1f} GB available of {cpu['memory'] / 1e9:.1f} GB")
    yield _load()
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    yield Finding("versions", versions)
    code = facts["code"]
    yield Finding(
        "code",
        f"commit {(code['commit'] or 'unknown')[:12]}{', with changes' if code['dirty'] else ''}",
        "commit the changes: a run of changed code is stamped dirty" if code["dirty"] else "",
    )
    there = (embedded.folder() / "model.safetensors").exists()
    yield Finding("model", f"{embedded.NAME} {'in' if there else 'not yet in'} {embedded.cache()}")
    yield same_seed(facts)
    yield _writable()
    yield _lock()
    registry.load_plugins()
    for plugin in registry.broken:
        yield Finding("plug-in", f"{plugin.module} could not be imported: {plugin.reason}", "mend or uninstall it")
    yield Finding("plug-ins", f"{len(registry.techniques)} techniques, {len(registry.workloads)} workloads")


def _gpu(gpu: dict[str, object]) -> Finding:
    others = gpu.get("processes")
    text = f"driver {gpu.get('driver')}, power limit {gpu.get('power_limit_w')} W, {others} processes on it"
    return Finding("gpu", text, "end the other processes on the GPU" if others else "")


def _load() -> Finding:
    before = load.read([])
    _wait(1.0)
    around = load.between(before, load.read([]))
    if around["others"] is None:
        return Finding("load", str(around["reason"]))
    text = f"{around['others']:.2f} cores used by others, {around['stolen']:.2f} stolen, over one second"
    return Finding("load", text, "end what else runs: bursts will be repeated" if around["disturbed"] else "")


def same_seed(facts: dict[str, Any]) -> Finding:
    """What the newest determinism report of this device and these versions says."""
    report = determinism.known(facts)
    if report is None:
        return Finding("same seed", "not examined on this device with these versions (bench doctor --determinism)")
    counts = Counter(row["answer"] for row in report["rows"] if row["arm"] is not None)
    text = ", ".join(f"{counts[answer]} {answer}" for answer in determinism.ANSWERS if counts[answer])
    return Finding("same seed", f"arms of {report['experiment']} run twice: {text} ({report['made']})")


def _wait(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _writable() -> Finding:
    folder = store.results_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = os.access(existing, os.W_OK)
    return Finding("results", str(folder), "" if writable else "not writable: choose another folder with --out")


def _lock() -> Finding:
    path: Path = lock.default_path()
    if not path.exists():
        return Finding("lock", "free")
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("lock", f"held by {file.read().strip()}", "wait for that run to end")
    return Finding("lock", "free")
