"""The network in the package is small, what its report says, and never was on a grid of few bits."""

from __future__ import annotations

import json

import pytest
import torch

from bench import embedded_stdlib, model_names
from bench.models import Source, Sources
from bench.plan import parameters_of
from benchmarks.finetuning.quantisation import Quantisation, weight_errors
from techniques.finetuning.full import Full
from techniques.finetuning.qlora import Qlora

SOURCE = Source(embedded_stdlib.NAME)
REPORT = json.loads((embedded_stdlib.TRAINED / embedded_stdlib.REPORT).read_text())


def test_it_is_small_and_on_record() -> None:
    assert sum(file.stat().st_size for file in embedded_stdlib.TRAINED.iterdir()) < 8_000_000
    assert embedded_stdlib.ensure() == embedded_stdlib.TRAINED
    assert REPORT["weights"]["sha256"] == SOURCE.fingerprint
    assert len(REPORT["corpus"]["sha256"]) == 64
    assert REPORT["cost"]["tokens"] >= REPORT["recipe"]["tokens"]
    assert REPORT["cost"]["seconds"] > 0
    assert [record["step"] for record in REPORT["log"]][-1] == REPORT["cost"]["steps"]


def test_it_is_a_model_like_any_other() -> None:
    assert model_names.kind_of(embedded_stdlib.NAME) == "embedded"
    assert not SOURCE.is_random
    assert not SOURCE.on_4_bit_grid
    assert "4-bit" not in SOURCE.origin
    model = SOURCE.model()
    assert SOURCE.parameters == sum(p.numel() for p in model.parameters()) == REPORT["weights"]["count"]
    norms = (2 * model.config.num_hidden_layers + 1) * model.config.hidden_size  # type: ignore[operator, union-attr]
    assert parameters_of(embedded_stdlib.NAME) == SOURCE.parameters - norms
    expected = dict(model.named_parameters())
    read = {f"{prefix}.{key}": t for prefix, tensors in SOURCE.layers() for key, t in tensors.items()}
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_it_has_learnt_and_few_bits_have_their_types_error() -> None:
    workload = Quantisation(sequence=128, items=8)
    sources = Sources(SOURCE)
    built = workload.build(sources, 0)
    nll, error = {}, {}
    for kind in ("full", "nf4", "fp4", "int4"):
        technique = Full() if kind == "full" else Qlora(quant_type=kind, backend="reference")
        quality = workload.quality(technique, technique.prepare(sources), built, 0, SOURCE, None)
        assert not quality.notes
        nll[kind] = sum(quality.metrics["nll"]) / 8
        error[kind] = sum(quality.metrics["weight_error"]) / len(quality.metrics["weight_error"])
    # far below the log of the vocabulary's size, and near what the training saw of held-out text
    assert nll["full"] == pytest.approx(REPORT["weights"]["heldout_nll"], abs=0.6)
    assert REPORT["weights"]["heldout_nll"] < 5.0
    assert error["full"] < 1e-6
    assert error["nf4"] == pytest.approx(0.092, rel=0.1)
    assert error["nf4"] < error["int4"] < error["fp4"]
    # so early in its training a network hardly notices
    assert max(abs(nll[kind] - nll["full"]) for kind in nll) < 0.05


def test_its_weights_fill_the_space_between_few_bits() -> None:
    """Weights that were quantised before would come out of a second quantisation of their own kind unchanged."""
    for kind in ("nf4", "fp4", "int4"):
        technique = Qlora(quant_type=kind, block_size=32, double_quantisation=False, backend="reference")
        errors = [error for _, error in weight_errors(technique.prepare(Sources(SOURCE)), SOURCE)]
        assert min(errors) > 0.06
