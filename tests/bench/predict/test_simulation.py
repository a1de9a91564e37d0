"""A run on tensors without contents holds what a real one holds, and computes what can be counted by hand."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import registry
from bench.errors import Unsupported
from bench.models import Source, Sources
from bench.predict.heap import Heap
from bench.predict.simulation import Simulated, Tracker, simulate
from bench.predict.weightless import sources
from bench.probes.tensors import StorageWatch
from bench.technique import Technique
from bench.workload import Workload

registry.load_plugins()
TRAINING = {"name": "embedded_text", "batch_size": 2, "sequence": 48, "burst_steps": 1, "items": 4}
CONTEXT = {"name": "long_document", "context": 96, "new_tokens": 4, "items": 2, "timed_contexts": 3}
PAIRS = {"name": "continuation_pairs", "batch_size": 2, "burst_steps": 1, "pairs": 8, "items": 8}


class Free:
    """An allocator that keeps nothing free."""

    idle = 0

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    @property
    def held(self) -> int:
        return sum(self.sizes.values())

    reserved = least = held

    def take(self, key: int, size: int) -> None:
        self.sizes[key] = size

    def give(self, key: int) -> None:
        del self.sizes[key]

    def trim(self) -> None: ...


def pair(technique: str, workload: dict[str, Any], **parameters: Any) -> tuple[Technique, Workload]:
    entry = registry.techniques[technique]
    asked = dict(workload)
    return entry.cls(**{**entry.parameters, **parameters}), registry.workloads[asked.pop("name")].cls(**asked)


def foreseen(technique: Technique, workload: Workload, model: str, dtype: str = "float32") -> Simulated:
    models = sources(model, {}, dtype)
    return simulate(technique, workload, workload.build(models, 0), models, 0, Free())


def really(technique: Technique, workload: Workload, model: str, dtype: str = "float32") -> Counter[str]:
    """The same burst on real tensors: what lives at the peak, by component."""
    models = Sources(Source(model, dtype=dtype))
    built = workload.build(models, 0)

    class Gauge:
        peak = 0

        def rose(self, alive: int) -> bool:
            rose = alive > self.peak
            self.peak = max(alive, self.peak)
            return rose

    class Watch(StorageWatch):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            self.ask(func.__name__)
            return result

    gauge = Gauge()
    watch = Watch("cpu", gauge)
    prepared = technique.prepare(models)
    watch.name(prepared.holdings())
    for index in (-1, 0):
        gauge.peak = 0
        watch.ask()
        steps = technique.steps(prepared, workload.burst(built, index, 0, "cpu"))
        while True:
            with watch:
                step = next(steps, None)
            if step is None:
                break
            watch.name(prepared.holdings())
            del step
    named, unnamed = watch.at_peak()
    prepared.close()
    return named + Counter(activations=sum(unnamed.values()))


@pytest.mark.parametrize("model", ["tiny:llama", "tiny:gpt2"])
@pytest.mark.parametrize(
    ("technique", "workload", "parameters"),
    [
        ("full", TRAINING, {}),
        ("lora", TRAINING, {"rank": 4}),
        ("lora", TRAINING, {"rank": 4, "gradient_checkpointing": True}),
        ("qlora", TRAINING, {"rank": 4, "backend": "reference"}),
        ("mezo", TRAINING, {}),
        ("full_cache", CONTEXT, {}),
        ("snapkv", CONTEXT, {"ratio": 0.5}),
        ("kv_int8", CONTEXT, {}),
        ("kivi", CONTEXT, {"group": 8, "residual": 32}),
        ("fastgen", CONTEXT, {"recovery": 1.0}),
        ("dpo", PAIRS, {"rank": 4}),
    ],
)
def test_it_holds_what_a_real_burst_holds(
    technique: str, workload: dict[str, Any], parameters: dict[str, Any], model: str
) -> None:
    asked = pair(technique, workload, **parameters)
    found, real = foreseen(*asked, model), really(*asked, model)
    assert found.live == pytest.approx(sum(real.values()), rel=0.02)
    for component, size in real.items():
        if size > 0.1 * found.live:
            assert found.parts[component] == pytest.approx(size, rel=0.03), component


@pytest.mark.parametrize("backend", ["reference", "bitsandbytes"])
def test_a_model_of_four_bits_is_foreseen_in_sixteen_as_in_thirty_two(backend: str) -> None:
    asked = pair("qlora", TRAINING, rank=4, backend=backend)
    narrow, wide = (foreseen(*asked, "tiny:llama", dtype) for dtype in ("bfloat16", "float32"))
    assert narrow.parts["quantisation_constants"] == wide.parts["quantisation_constants"] > 0
    assert narrow.parts["adapters"] == wide.parts["adapters"]
    assert narrow.parts["weights"] < wide.parts["weights"]  # the embeddings stay as they are


def test_the_dtype_counts() -> None:
    asked = pair("lora", TRAINING, rank=4)
    wide, narrow = (foreseen(*asked, "tiny:llama", dtype) for dtype in ("float32", "bfloat16"))
    assert wide.parts["weights"] == pytest.approx(2 * narrow.parts["weights"], rel=0.02)
    assert wide.parts["adapters"] == narrow.parts["adapters"]


def test_more_rows_need_more_activations_and_no_more_weights() -> None:
    small, large = (foreseen(*pair("full", {**TRAINING, "batch_size": rows}), "tiny:llama") for rows in (2, 4))
    assert large.parts["activations"] > 1.5 * small.parts["activations"]
    assert large.parts["weights"] == small.parts["weights"]


def test_a_step_is_counted_operation_by_operation() -> None:
    technique, workload = pair("full_cache", CONTEXT)
    prefill, *decoded = foreseen(technique, workload, "tiny:llama").steps
    model: Any = Source("tiny:llama").model()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    config = model.config
    width = config.num_attention_heads * config.head_dim
    # one token: every weight of every product once, and queries with the keys and values of about 97 tokens
    attention = 4 * width * 97.5 * config.num_hidden_layers
    assert decoded[0].flops == pytest.approx(2 * linear + attention, rel=0.02)
    assert len(decoded) == 3
    # the prefill's head reads the last token alone
    body = linear - model.lm_head.weight.numel()
    assert prefill.flops > 96 * 2 * body
    assert decoded[0].bytes > 4 * linear


def test_the_free_parts_of_the_heap_are_part_of_the_peak() -> None:
    technique, workload = pair("full", TRAINING)
    models = sources("tiny:llama", {}, "float32")
    found = simulate(technique, workload, workload.build(models, 0), models, 0, Heap())
    assert found.reserved == pytest.approx(found.live + found.idle, rel=0.05)
    assert found.idle > 0


def test_numbers_that_only_weights_give_are_counted() -> None:
    assert foreseen(*pair("full_cache", CONTEXT), "tiny:llama").guessed == 0
    # it tries on the model whether keys can be turned
    assert foreseen(*pair("streaming_llm", CONTEXT), "tiny:llama").guessed > 0


def test_heads_that_choose_for_themselves_are_taken_to_keep_everything() -> None:
    chooses, keeps = (foreseen(*pair("fastgen", CONTEXT, recovery=share), "tiny:llama") for share in (0.9, 1.0))
    assert chooses.guessed > 0
    assert chooses.parts["kv_cache"] == keeps.parts["kv_cache"] > 0


def test_a_library_that_reads_the_weights_itself_is_refused() -> None:
    with pytest.raises(Unsupported, match="cannot be foreseen"):
        foreseen(*pair("peft_qlora", TRAINING, rank=4), "tiny:llama")


@pytest.mark.parametrize("technique", ["peft_adapter", "prefix_tuning", "ia3"])
def test_what_torch_refuses_on_tensors_without_contents_is_one_line(technique: str) -> None:
    with pytest.raises(Unsupported, match=r"cannot be foreseen: .*Couldn't swap") as error:
        foreseen(*pair(technique, TRAINING), "tiny:llama")
    assert "\n" not in str(error.value)


def test_a_network_to_be_filled_layer_by_layer_takes_nothing_before() -> None:
    tracker = Tracker(Heap())
    source = sources("tiny:llama", {}, "float32").target
    gc.collect()
    gc.disable()  # what reference cycles keep must not count either
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), tracker:
            model = source.empty()
            assert torch.empty(7).shape == (7,)
    finally:
        gc.enable()
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert tracker.peak < 1000 < source.parameters


def test_no_mode_and_no_weight_is_left_behind() -> None:
    models = sources("tiny:llama", {}, "float32")
    technique, workload = pair("lora", TRAINING, rank=4)
    simulate(technique, workload, workload.build(models, 0), models, 0, Free())
    assert type(torch.ones(2)) is torch.Tensor
    assert torch.ones(2).sum().item() == 2.0
