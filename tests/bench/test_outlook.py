"""`bench predict` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from bench import cli
from bench.models import Source

SMALL = ("--model", "tiny:llama", "--set", "sequence=16", "--set", "batch_size=1", "--set", "lora.rank=2")


def call(*arguments: str, code: int = 0) -> list[str]:
    result = CliRunner().invoke(cli.app, ["predict", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output.splitlines()


def test_a_technique_is_foreseen_beside_its_baseline_on_a_device_that_is_not_here() -> None:
    arms = ("lora", *SMALL, "--device", "h200", "--out", "nowhere")
    found = [json.loads(line) for line in call(*arms, "--budget", "16MB", "--largest", "batch_size", "--json")]
    assert [one["technique"] for one in found] == ["full", "full_pure", "lora"]
    for one in found:
        assert one["device"] == "NVIDIA H200 SXM"
        assert one["peak"] == sum(one["parts"].values())
        assert one["seconds"]["train"] > 0
        assert one["unseen_share"] is None
        assert one["largest"]["batch_size"] > 1
    full, _, lora = found
    assert full["parts"]["optimizer"] > lora["parts"]["optimizer"]


def test_what_cannot_be_foreseen_is_said_with_its_reason() -> None:
    lines = call("peft_qlora", *SMALL[:-2], "--device", "h200", "--out", "nowhere", code=3)
    assert any(line.startswith("peft_qlora: cannot be foreseen") for line in lines)


def test_a_configuration_alone_is_as_good_as_the_model_that_has_it(tmp_path: Path) -> None:
    Source("tiny:llama").config.save_pretrained(tmp_path)
    asked = ("full", *SMALL[2:-2], "--device", "h200", "--out", "nowhere", "--json")
    of_name, of_folder = (json.loads(call(*asked, "--model", model)[0]) for model in ("tiny:llama", str(tmp_path)))
    assert of_folder["model"] == str(tmp_path)
    assert of_folder["parts"] == of_name["parts"]
    assert of_folder["flops"] == of_name["flops"]


def test_a_cpu_reserves_nothing_beside_the_peak() -> None:
    found = [json.loads(line) for line in call("full", *SMALL[:-2], "--out", "nowhere", "--json")]
    assert found
    assert all(one["needed"] == one["peak"] for one in found)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; sys.modules['torch'] = None; sys.argv = ['bench', 'predict', *{arguments!r}];"
        "from bench.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_its_help_and_its_refusals_need_no_torch() -> None:
    assert run("--help").returncode == 0
    for arguments, needle in (
        ((), "name a technique"),
        (("--check", "x", "--budget", "1GB"), "only --out and --json"),
        (("lora", "--budget", "much"), "'much' is no size of memory"),
    ):
        ran = run(*arguments)
        assert ran.returncode == 2
        assert needle in ran.stderr
        assert "Traceback" not in ran.stderr
