from __future__ import annotations

from pathlib import Path

from bench.anonymous import anonymous
from bench.manifest import ROOT


def test_paths_in_the_checkout_are_relative() -> None:
    assert anonymous(f"{ROOT}/configs/cpu.yaml") == "configs/cpu.yaml"
    assert anonymous(str(ROOT)) == "."
    trace = f'File "{ROOT}/bench/runner.py", line 3, in go'
    assert anonymous(trace) == 'File "bench/runner.py", line 3, in go'


def test_paths_in_a_python_library_keep_what_is_public() -> None:
    assert anonymous('File "/home/zoe/.venv/lib/python3.11/site-packages/torch/nn.py"') == (
        'File "lib/python3.11/site-packages/torch/nn.py"'
    )


def test_other_paths_are_hashed_alike_everywhere() -> None:
    hashed = anonymous("/home/zoe/acme/data.jsonl")
    assert hashed.startswith("path:")
    assert hashed.endswith(".jsonl")
    assert "zoe" not in hashed
    assert anonymous("cannot read /home/zoe/acme/data.jsonl: no rights") == f"cannot read {hashed}: no rights"
    assert anonymous("workload.path=/home/zoe/acme/data.jsonl") == f"workload.path={hashed}"
    assert anonymous("/home/zoe/acme/other.jsonl") != hashed


def test_a_home_at_the_root_is_hashed_too() -> None:
    home = Path("/root") if Path("/root").exists() else Path("/home")
    assert str(home) not in anonymous(f"cannot read {home}: no rights")


def test_a_path_with_spaces_is_hashed_whole(tmp_path: Path) -> None:
    odd = tmp_path / "secret project (1)"
    odd.mkdir()
    for text in (str(odd), f"--out={odd}"):
        assert "secret" not in anonymous(text)
        assert "project" not in anonymous(text)


def test_everything_inside_is_looked_at_and_nothing_else_changed() -> None:
    data = {"a": [{"/home/zoe/x": "/home/zoe/y"}], "n": [1, 2.5, None, True]}
    found = anonymous(data)
    assert "zoe" not in str(found)
    assert found["n"] == data["n"]
    for text in (
        "https://arxiv.org/abs/2305.14314",
        "tiny:llama",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "1/2 of it and /or none",
        "configs/cpu.yaml",
        "no /proc/stat on this system",
        "2026-11-22T06:51:41Z",
    ):
        assert anonymous(text) == text
