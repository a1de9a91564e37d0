"""The contract, over every registered technique and workload, ours and anybody's."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from bench import metrics, registry
from bench.errors import Unsupported
from bench.models import Source, Sources
from bench.probes.clock import PhaseClock, count_tokens
from bench.probes.memory import bytes_held
from bench.shapes import TINY
from bench.workload import content_hash

registry.load_plugins()
TECHNIQUES = [n for n in registry.techniques if not registry.techniques[n].cls.__module__.startswith("known")]
WORKLOADS = list(registry.workloads)
ARCHITECTURES = [f"tiny:{name}" for name in TINY]
FORBIDDEN = {"time", "pathlib", "logging", "rich", "io", "tempfile", "subprocess"}


def sources(model: str) -> Sources:
    return Sources(Source(model, dtype="float32"), {"draft": Source(model, "draft", dtype="float32")})


_built: dict[tuple[str, str], Any] = {}


def jobs_for(technique: Any, model: str) -> Iterator[Any]:
    """A timed job of every workload of the technique's family."""
    for entry in registry.workloads.of_family(technique.family):
        workload = entry.cls(**entry.parameters).quick()
        key = (entry.name, model)
        if key not in _built:
            _built[key] = workload.build(sources(model), 0)
        yield workload.burst(_built[key], 0, 0, "cpu")


def instance(name: str) -> Any:
    entry = registry.techniques[name]
    return entry.cls(**entry.parameters)


@cache
def first_job(name: str, model: str) -> Any:
    """The first job that the technique does, two steps of it at least, or why it does none.

    Some need a reward, and not all workloads have one.
    """
    torch.manual_seed(0)
    technique = instance(name)
    try:
        prepared = technique.prepare(sources(model))
    except Unsupported as reason:
        return reason
    reasons = []
    for job in jobs_for(technique, model):
        try:
            assert list(itertools.islice(technique.steps(prepared, job), 2))
        except Unsupported as reason:
            reasons.append(reason)
        else:
            prepared.close()
            return job
    return reasons[0]


def job_or_skip(name: str, model: str) -> Any:
    job = first_job(name, model)
    if isinstance(job, Unsupported):
        pytest.skip(f"unsupported, as recorded in its row: {job}")
    return job


def prepared_or_skip(name: str, model: str) -> tuple[Any, Any, Any]:
    job = job_or_skip(name, model)
    technique = instance(name)
    torch.manual_seed(0)
    return technique, technique.prepare(sources(model)), job


def modes() -> tuple[bool, bool, bool, bool]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )


def hooks(model: torch.nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_parameters_survive_json(name: str) -> None:
    technique = instance(name)
    again = type(technique)(**json.loads(json.dumps(technique.model_dump(mode="json"))))
    assert again == technique
    for field, info in type(technique).model_fields.items():
        assert info.description, f"{field} has no docstring"
    assert technique.source
    assert registry.techniques[name].summary.endswith(".")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_runs_on_two_architectures(name: str) -> None:
    assert sum(not isinstance(first_job(name, model), Unsupported) for model in ARCHITECTURES) >= 2


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_leaves_no_mode_and_no_hook(name: str, model: str) -> None:
    technique, prepared, job = prepared_or_skip(name, model)
    before, hooked = modes(), hooks(prepared.model)
    model_of = prepared.model
    attention = model_of.config._attn_implementation
    first = technique.steps(prepared, job)
    for step in itertools.islice(first, 3):
        assert modes() == before, "a mode leaks between yields"
        assert step.kind in {"prefill", "decode", "train", "rollout"}
        assert count_tokens(step) > 0
    # two generators, closed out of order: what either held must not come back
    second = technique.steps(prepared, job)
    next(second)
    first.close()
    assert modes() == before
    second.close()
    assert modes() == before
    assert hooks(model_of) <= hooked, "a hook was left behind"
    prepared.close()
    assert hooks(model_of) == 0
    assert model_of.config._attn_implementation == attention


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_same_seed_same_outputs(name: str, model: str) -> None:
    job = job_or_skip(name, model)
    technique = instance(name)

    def outputs(job: Any, state: int) -> list[list[float]]:
        torch.manual_seed(0)
        prepared = technique.prepare(sources(model))
        torch.manual_seed(state)  # the global generator's state is nobody's business
        found = [out.flatten().tolist() for step in technique.steps(prepared, job) for out in step.outputs]
        prepared.close()
        return found

    phases = PhaseClock("cpu")
    assert outputs(job, 1) == outputs(replace(job, phase=phases), 2), (
        "not the seed alone decides: phases, or others' draws"
    )
    # a library's own loop cannot be marked from outside
    assert phases.seconds or technique.peer, "no phase is marked"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_outputs_are_owned(name: str) -> None:
    technique, prepared, job = prepared_or_skip(name, "tiny:llama")
    kept, copies = [], []
    for step in technique.steps(prepared, job):
        for output in step.outputs:
            kept.append(output)
            copies.append(output.clone())
            assert output.untyped_storage().nbytes() == output.numel() * output.element_size()
            assert not output.requires_grad
    assert kept
    for output, copy in zip(kept, copies, strict=True):
        assert torch.equal(output, copy), "a later step overwrote an earlier output"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_names_what_it_holds(name: str) -> None:
    technique, prepared, job = prepared_or_skip(name, "tiny:llama")
    steps = technique.steps(prepared, job)
    next(steps)
    held = bytes_held(prepared.holdings())
    steps.close()
    parameters = sum(p.numel() * p.element_size() for p in prepared.model.parameters())
    assert sum(held.values()) >= parameters
    assert all(size >= 0 for size in held.values())
    prepared.close()


@pytest.mark.parametrize("name", TECHNIQUES)
def test_weights_read_are_on_record(name: str) -> None:
    used = sources("tiny:llama")
    instance(name).prepare(used)
    assert used.log
    assert all(entry["bytes"] > 0 for entry in used.log)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_holds_no_clock_and_no_file(name: str) -> None:
    tree = ast.parse(inspect.getsource(inspect.getmodule(registry.techniques[name].cls)))
    imported = {
        (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not imported & FORBIDDEN
    assert not called & {"print", "open", "input", "exec", "eval"}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_primary_metrics_are_in_the_glossary(name: str) -> None:
    for axis, metric in registry.techniques[name].cls.primary.items():
        assert metrics.metric(metric).axis == axis


@pytest.mark.parametrize("name", WORKLOADS)
def test_judged_metrics_are_in_the_glossary(name: str) -> None:
    for axis, metric in registry.workloads[name].cls.primary.items():
        assert metrics.metric(metric).axis == axis


def test_every_family_has_one_baseline_and_a_workload() -> None:
    for family in registry.families():
        entries = [e for e in registry.techniques.of_family(family) if not e.cls.__module__.startswith("known")]
        assert sum(e.cls.baseline and not e.is_preset for e in entries) == 1
        assert registry.workloads.of_family(family)


def variants(job: Any) -> Iterator[torch.Tensor]:
    """All tensors of a job, whatever its family."""

    def walk(value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            for part in value:
                yield from walk(part)
        elif hasattr(value, "__dataclass_fields__"):
            for field in value.__dataclass_fields__:
                yield from walk(getattr(value, field))

    yield from walk(job)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(name: str) -> None:
    entry = registry.workloads[name]
    workload = entry.cls(**entry.parameters).quick()
    assert type(workload)(**json.loads(json.dumps(workload.model_dump(mode="json")))) == workload
    built = workload.build(sources("tiny:llama"), 0)
    assert content_hash(built) == content_hash(json.loads(json.dumps(built)))
    assert content_hash(built) == content_hash(workload.build(sources("tiny:llama"), 0)), "build is not seeded"

    def shown(index: int) -> list[list[float]]:
        return [t.tolist() for t in variants(workload.burst(built, index, 0, "cpu"))]

    assert shown(0) == shown(0), "arms would get different jobs"
    assert shown(0) != shown(1), "bursts repeat the same data"
    assert shown(-1) not in (shown(0), shown(1)), "the warm-up uses timed data"
    _, burst, scored = workload.work()
    assert burst.prefill + burst.decode + burst.train > 0
    assert scored.prefill + scored.decode + scored.train > 0
    assert workload.source


@pytest.mark.parametrize("name", WORKLOADS)
def test_quality_scores_the_same_items_for_every_arm(name: str) -> None:
    entry = registry.workloads[name]
    workload = entry.cls(**entry.parameters).quick()
    used = sources("tiny:llama")
    built = workload.build(used, 0)
    arms = [e for e in registry.techniques.of_family(workload.family) if not e.cls.__module__.startswith("known")]
    same = [e.name for e in registry.workloads.of_family(workload.family) if e.cls.quality is entry.cls.quality]
    if name != same[0]:  # presets, which change parameters alone, meet each way to score once
        arms = [e for e in arms if not e.is_preset]
    arms.sort(key=lambda e: not e.cls.baseline)
    reference, items = None, dict[str, int]()
    for arm in arms:
        technique = arm.cls(**arm.parameters)
        torch.manual_seed(0)
        try:
            prepared = technique.prepare(used)
            quality = workload.quality(technique, prepared, built, 0, used.target, reference)
        except Unsupported:
            continue
        reference = reference or quality
        assert {**technique.primary, **workload.primary}["quality"] in quality.metrics
        for metric, values in quality.metrics.items():
            assert metrics.metric(metric).axis == "quality" or metrics.metric(metric).exact
            assert len(values) == items.setdefault(metric, len(values))
            assert all(value == value for value in values)
        assert quality.gates, f"{arm.name} is ungated"
        assert all(gate.passed for gate in quality.gates), quality.gates
        json.dumps(quality.to_json())
    assert reference is not None
