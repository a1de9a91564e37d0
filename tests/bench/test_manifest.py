from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from bench import machine, manifest
from bench.errors import UsageError


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    return manifest.collect("cpu", "float32", ("run", "cpu", "--seed", "3"))


def test_what_changes_figures_is_there(facts: dict[str, object]) -> None:
    assert facts["device"] == {"kind": "cpu", "name": manifest.device_name("cpu"), "dtype": "float32"}
    assert facts["hub_kernels"] is False
    assert facts["kernel"] == platform.release()
    assert facts["argv"] == ["run", "cpu", "--seed", "3"]


def test_cpu(facts: dict[str, object]) -> None:
    cpu = facts["cpu"]
    assert cpu["threads"] == torch.get_num_threads()
    assert cpu["interop_threads"] == torch.get_num_interop_threads()
    assert cpu["affinity"] == len(os.sched_getaffinity(0))
    assert cpu["memory"] > 1e9
    assert set(cpu["flags"]) <= machine.cpu_flags()
    assert {"governor", "frequency_mhz", "max_mhz", "boost"} < set(cpu["clocks"])
    assert {"cpus", "memory"} < set(cpu["limits"])


def test_versions(facts: dict[str, object]) -> None:
    found = facts["versions"]
    assert found["python"] == platform.python_version()
    for package in ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "scipy", "gguf"):
        assert found[package] == version(package)
    assert set(manifest.PACKAGES) <= set(found), "those that are not installed are there, as None"


def test_torch(facts: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts["torch"]
    assert found["cuda"] == torch.version.cuda
    assert found["cudnn"] == torch.backends.cudnn.version()
    assert found["matmul_tf32"] is torch.backends.cuda.matmul.allow_tf32
    assert found["onednn"] is torch.backends.mkldnn.is_available()
    assert found["mkl"] is torch.backends.mkl.is_available()
    assert "math" in found["attention_kernels"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    changed = manifest.torch_facts()
    assert changed["matmul_precision"] == "medium"
    assert set(found["attention_kernels"]) - set(changed["attention_kernels"]) == {"flash"}


def test_precision_that_torch_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed() -> str:
        raise RuntimeError("mix of the legacy and new APIs\nand more")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    found = manifest.torch_facts()
    assert found["matmul_precision"] is None
    assert found["reasons"]["matmul_precision"] == "mix of the legacy and new APIs"
    assert found["onednn"] is not None


def test_whatever_is_unknown_has_its_reason(facts: dict[str, object]) -> None:
    for part in (facts["torch"], facts["cpu"]["clocks"], facts["cpu"]["limits"]):
        unknown = {name for name, value in part.items() if value is None}
        assert unknown == set(part["reasons"])
        assert all(part["reasons"].values())


def test_variables_are_those_on_the_list_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*manifest.VARIABLES, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert manifest.variables() == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("LD_PRELOAD", "/home/zoe/lib/libjemalloc.so.2:/opt/libiomp5.so")
    monkeypatch.setenv("API_TOKEN", "secret")
    assert manifest.variables() == {
        "OMP_NUM_THREADS": "2",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "MALLOC_ARENA_MAX": "1",
        "LD_PRELOAD": "libjemalloc.so.2 libiomp5.so",
    }
    assert "secret" not in json.dumps(manifest.collect("cpu", "float32"))


def test_nobody_is_named(facts: dict[str, object]) -> None:
    text = json.dumps(facts)
    assert socket.gethostname() not in text.split('"')
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
    (tmp_path / "bench" / "y.py").write_text("new")
    assert manifest.commit()["dirty"] is True
    (tmp_path / "bench" / "y.py").unlink()
    (tmp_path / "bench" / "x.py").write_text("b")
    assert manifest.commit()["dirty"] is True


def test_no_checkout_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    found = manifest.commit()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["reason"]


def test_dtype_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2"})
    assert manifest.resolve_dtype("auto", "cpu") == "float32"
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx512_bf16"})
    assert manifest.resolve_dtype("auto", "cpu") == "bfloat16"
    assert manifest.resolve_dtype("float16", "cpu") == "float16"
    assert manifest.resolve_dtype("auto", "cuda") == "bfloat16"


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_changes_by_itself_makes_no_other_environment() -> None:
    a = {"cpu": {"threads": 2, "clocks": {"frequency_mhz": 1.0, "governor": "x"}}, "gpu": {"processes": 0}, "argv": []}
    b = {"cpu": {"threads": 2, "clocks": {"frequency_mhz": 2.0, "governor": "x"}}, "gpu": {"processes": 1}, "argv": [1]}
    assert manifest.lasting_differences(a, b) == []
    b["cpu"]["clocks"]["governor"] = "y"
    b["cpu"]["threads"] = 1
    assert manifest.lasting_differences(a, b) == ["cpu.clocks.governor", "cpu.threads"]
