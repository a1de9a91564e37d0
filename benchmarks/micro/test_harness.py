"""What the harness itself costs: `pytest benchmarks/micro --benchmark-enable`.

Harness cost per step is to stay below 1 % of a decoding step of the embedded model, `bench --help` below 0.5 s,
`list`, `show` and `validate` below 4 s.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.probes.clock import time_steps
from bench.technique import Step

STEPS = 1000
OUTPUT = (torch.tensor([1]),)


def no_op() -> Iterator[Step]:
    for index in range(STEPS):
        yield Step("decode" if index else "prefill", 1, OUTPUT)


@pytest.mark.benchmark(group="step")
def test_a_thousand_timed_no_op_steps(benchmark: BenchmarkFixture) -> None:
    samples = benchmark(lambda: time_steps(no_op(), "cpu"))
    assert len(samples.seconds) == STEPS


@pytest.mark.benchmark(group="step")
def test_a_thousand_untimed_no_op_steps(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(lambda: list(no_op()))) == STEPS


@pytest.mark.embedded
@pytest.mark.benchmark(group="step")
def test_one_decoding_step_of_the_embedded_model(benchmark: BenchmarkFixture) -> None:
    from bench import embedded
    from bench.families import cache as kv
    from bench.manifest import resolve_dtype
    from bench.models import Source

    embedded.ensure()
    model = Source("smollm2-135m", dtype=resolve_dtype("auto", "cpu")).model()
    cache = kv.preallocated(model.config, 512)
    ids = torch.arange(1000, 1256)[None]

    @torch.inference_mode()
    def step() -> torch.Tensor:
        logits = kv.read(model, ids[:, :1], cache)
        cache.crop(-1)
        return logits

    with torch.inference_mode():
        kv.read(model, ids, cache)
    assert benchmark(step).shape[1] == 1


@pytest.mark.benchmark(group="command")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["show", "prompt_lookup"], ["validate", "smoke"]], ids=lambda a: a[0]
)
def test_command(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "bench.cli", *arguments]
    done = benchmark.pedantic(lambda: subprocess.run(command, capture_output=True), rounds=3, warmup_rounds=1)
    assert done.returncode == 0
