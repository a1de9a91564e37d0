"""A name is one sort of source, and what is none is refused with a word on what is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.model_names import kind_of


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny:lama", "did you mean 'tiny:llama'"),
        ("synthetic:llama-7", "did you mean 'synthetic:llama-"),
        ("smollm", "unknown model"),
        ("/not/there", "no config.json"),
        ("a b", "unknown model"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind_of(name)


def test_kinds() -> None:
    assert kind_of("smollm2-135m") == "embedded"
    assert kind_of("synthetic:llama-65b") == "synthetic"
    assert kind_of("HuggingFaceTB/SmolLM2-135M") == kind_of("hub:HuggingFaceTB/SmolLM2-135M") == "hub"


def test_a_folder_without_weights_is_one_only_where_none_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert kind_of(str(tmp_path), weights=False) == "folder"
    with pytest.raises(UsageError, match=r"no weights as \*\.safetensors"):
        kind_of(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        kind_of(str(tmp_path), weights=False)
