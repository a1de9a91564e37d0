"""What every way of finetuning must do: wait for nothing inside a step, name what it holds, go on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetuned import IDS, JOB, MODELS, losses, prepared
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.families.finetuning import FinetuningJob, TextBatch
from bench.probes import resident
from bench.probes.memory import Gauge, MemoryProbe, bytes_held
from bench.probes.tensors import StorageWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]
OURS = ["full", "lora", "lora_int8", "qlora", "loftq", "galore", "mezo", "linear_probe"]
PEERS = ["peft_qlora", "dora", "ia3", "prompt_tuning", "prefix_tuning"]


def technique(name: str) -> Any:
    entry = registry.techniques[name]
    return entry.cls(**{**entry.parameters, "learning_rate": 1e-3})


class Reads(TorchDispatchMode):
    """Counts the values that are copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OURS)
def test_no_value_is_read_inside_a_step_but_by_the_library(name: str):
    own = technique(name)
    arm = prepared(own)
    for _ in own.steps(arm, JOB):
        pass
    with Reads() as reads:
        for _ in own.steps(arm, JOB):
            pass
    # the library's own code reads one value a forward pass, of the mask
    assert reads.count == len(JOB.batches) * (2 if name == "mezo" else 1)


@pytest.mark.parametrize("name", OURS + PEERS)
def test_every_parameter_and_state_has_a_name(name: str):
    own = technique(name)
    arm = prepared(own)
    next(own.steps(arm, JOB))
    held = arm.holdings()
    named = {id(t) for tensors in held.values() for t in tensors}
    assert all(id(p) in named for p in arm.model.parameters())
    assert all(id(b) in named for b in arm.model.buffers())
    assert sum(p.nbytes for p in arm.trainable) > 0
    sizes = bytes_held(held)
    assert sizes["weights"] > 0
    assert ("adapters" in sizes) == (name not in {"full", "galore", "mezo"})
    assert ("quantisation_constants" in sizes) == (name in {"lora_int8", "qlora", "loftq", "peft_qlora"})


MERGED = ["lora", "lora_int8", "qlora", "loftq", "peft_qlora", "dora", "rslora", "pissa", "ia3"]


@pytest.mark.filterwarnings("ignore:Merge lora module")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MERGED)
def test_a_merged_model_is_what_was_trained(name: str, model: str):
    entry = registry.techniques[name]
    own: Any = entry.cls(**{**entry.parameters, "learning_rate": 3e-2})
    arm = prepared(own, model)
    start = own.logprobs(arm, IDS)
    losses(own, arm)
    end = own.logprobs(arm, IDS)
    assert arm.merge is not None
    arm.merge()
    merged = own.logprobs(arm, IDS)
    # few bits are rounded anew
    allowed = 0.2 if name in {"qlora", "loftq", "peft_qlora"} else 0.02 if name == "lora_int8" else 1e-3
    assert float((merged - end).norm()) < allowed * float((end - start).norm())


@pytest.mark.parametrize("name", OURS)
def test_bursts_go_on_where_the_last_one_stopped(name: str):
    own = technique(name)
    whole = losses(own, prepared(own))
    arm = prepared(own)
    parts = losses(own, arm, FinetuningJob(batches=JOB.batches[:2]))
    parts += losses(own, arm, FinetuningJob(batches=JOB.batches[2:], first_step=2))
    assert parts == whole


def report_of_a_step(name: str) -> dict[str, Any]:
    """What the memory probe says of a step, and the bytes of what is trained."""
    with StorageWatch("cpu", Gauge("cpu")):
        torch.ones(1)  # a process' first mode imports 70 MB
    own = technique(name)
    before = resident.at_rest()
    arm = prepared(own, "stdlib-4m")
    ids = torch.randint(2048, (4, 256), generator=torch.Generator().manual_seed(3))
    job = FinetuningJob(batches=(TextBatch(ids, ids, 4 * 255),) * 2)
    losses(own, arm, job)  # what the optimizer makes once is made
    probe = MemoryProbe(arm, "cpu", before)
    probe.follow(own.steps(arm, replace(job, phase=probe.phase)))
    return {**probe.read(), "trained": sum(p.nbytes for p in arm.trainable)}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize("name", ["full", "lora", "lora_int8", "qlora"])
def test_the_peak_of_a_step_is_named_part_by_part(name: str):
    # in a process of its own, for what other tests left in the heap would be used again
    logits = 4 * 256 * 2048 * 4
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, name], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    parts = report["parts"]
    assert report["explained"] >= 0.9
    assert sum(parts.values()) + report["rest"] - report["excess"] == report["peak"]
    wanted = {"weights", "optimizer", "activations"} | ({"adapters"} if name != "full" else set())
    wanted |= {"quantisation_constants"} if name in {"lora_int8", "qlora"} else set()
    assert wanted <= {part for part, size in parts.items() if size > 0}
    assert report["largest"]["gradients"] == report["trained"]
    # at least the logits in float32 and their gradient
    assert parts["activations"] > 2 * logits


if __name__ == "__main__":
    registry.load_plugins()
    print(json.dumps(report_of_a_step(sys.argv[1])))
