from __future__ import annotations

import getpass
import json
import socket
import subprocess
from pathlib import Path

import pytest

from bench import manifest
from bench.errors import UsageError


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    return manifest.collect("cpu", "float32")


def test_what_changes_figures_is_there(facts: dict[str, object]) -> None:
    assert facts["device"] == {"kind": "cpu", "name": manifest.device_name("cpu"), "dtype": "float32"}
    assert facts["cpu"]["threads"] >= 1
    assert facts["cpu"]["memory"] > 1e9
    assert {"torch", "transformers", "python", "bench"} <= set(facts["versions"])
    assert facts["torch"]["matmul_precision"] in {"highest", "high", "medium"}
    assert facts["hub_kernels"] is False


def test_nobody_is_named(facts: dict[str, object]) -> None:
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in text.split('"')


def test_dirty_means_the_code_not_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "x.py").write_text("a")
    git("add", "-A")
    git("commit", "-m", "x")
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    assert manifest.commit()["dirty"] is False
    assert len(manifest.commit()["commit"]) == 40
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert manifest.commit()["dirty"] is False
    (tmp_path / "bench" / "x.py").write_text("b")
    assert manifest.commit()["dirty"] is True


def test_no_checkout_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    assert manifest.commit() == {"commit": None, "dirty": None}


def test_dtype_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "cpu_flags", lambda: {"avx2"})
    assert manifest.resolve_dtype("auto", "cpu") == "float32"
    monkeypatch.setattr(manifest, "cpu_flags", lambda: {"avx512_bf16"})
    assert manifest.resolve_dtype("auto", "cpu") == "bfloat16"
    assert manifest.resolve_dtype("float16", "cpu") == "float16"
    assert manifest.resolve_dtype("auto", "cuda") == "bfloat16"


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert manifest.resolve_device("auto") == "cpu"
    with pytest.raises(UsageError, match="--device cpu"):
        manifest.resolve_device("cuda")


def test_differences() -> None:
    a = {"x": {"y": 1, "z": 2}, "w": 3}
    assert manifest.differences(a, {"x": {"y": 1, "z": 5}, "v": 4}) == [
        ("v", None, 4),
        ("w", 3, None),
        ("x.z", 2, 5),
    ]
