"""The command line as a person meets it: one line per mistake, no traceback, the documented exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.errors import BenchError


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *arguments], capture_output=True, text=True, timeout=120)


def call(*arguments: str) -> tuple[int, str]:
    """In this process, which has imported torch already."""
    result = CliRunner().invoke(cli.app, arguments)
    if isinstance(result.exception, BenchError):
        return result.exception.exit_code, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_mistake_is_one_line_without_traceback(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("name: x\ncomparisons:\n  - workload: grounded_cat\n    arms: [autoregressive]\n")
    done = bench("validate", str(config))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "comparisons[0].workload: unknown workload 'grounded_cat'; did you mean 'grounded_chat'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonsens"], "is no config, family or technique"),
        (["run", "prompt_lokup"], "did you mean 'prompt_lookup'"),
        (["run", "smoke", "--set", "itms=3"], "nothing in this config has it"),
        (["run", "smoke", "--set", "items"], "write KEY=VALUE"),
        (["run", "smoke", "--model", "tiny:lama"], "did you mean 'tiny:llama'"),
        (["run", "smoke", "--max-time", "soon"], "is no duration"),
        (["run", "smoke", "--max-time", "1s"], "raise it with --max-time"),
        (["run", "smoke", "--data", "/not/there.txt"], "/not/there.txt"),
        (["run", "smoke", "--model", "nobody/nothing-of-the-kind"], "the hub does not answer for it"),
        (["show", "lorra"], "did you mean 'lora'"),
        (["report", "/not/there"], "holds no run"),
        (["compare", "/not/there", "/not/there"], "holds no run"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    code, text = call(*arguments)
    assert code == 2, text
    assert message in text


def test_a_malformed_data_file_is_named_before_anything_starts(tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text('{"text": "a"}\n{"text": \n')
    code, text = call("run", "smoke", "--data", str(data))
    assert code == 2
    assert text.count(f"{data}, line 2: no JSON") == 4, "each workload that reads it says so"
    config = tmp_path / "x.yaml"
    config.write_text(
        "name: x\ncomparisons:\n  - workload: {name: embedded_text, path: /not/there.txt}\n    arms: [full]\n"
    )
    code, text = call("validate", str(config))
    assert code == 2
    assert "comparisons[0].workload: data file /not/there.txt: No such file" in text


def test_dry_run_prints_processes_start_and_work() -> None:
    code, text = call("run", "decoding", "--dry-run")
    assert code == 0
    assert "processes" in text
    assert "timing and memory" in text
    assert "34 processes" in text  # 1 builds, 3 score, 3 x 10 time


def test_list_and_show_name_everything() -> None:
    code, text = call("list")
    assert code == 0
    for name in ("autoregressive", "streaming_llm", "lora", "dpo", "smollm2-135m", "smoke"):
        assert name in text
    code, text = call("show", "prompt_lookup")
    assert code == 0
    assert "draft_tokens" in text
    assert ">= 1, <= 64" in text
    assert "Saxena" in text
    assert call("show", "grounded_chat")[0] == 0


@pytest.mark.parametrize(
    "name", ["smoke", "cpu", "decoding", "kv_cache", "finetuning", "preference", "gpu/default", "gpu/offline"]
)
def test_our_configs_are_valid(name: str) -> None:
    code, text = call("validate", name)
    assert code == 0, text


def test_report_draws_again_from_records_alone(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    for name in ("report.md", "table.csv"):
        (copy / name).unlink()
    code, text = call("report", str(copy))
    assert code == 0
    assert "prompt_lookup" in text
    for name in ("report.md", "table.csv"):
        assert (copy / name).read_text() == (finished_run / name).read_text()


def test_compare_refuses_what_is_not_comparable(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    cells = copy / "cells"
    for path in cells.iterdir():
        record = json.loads(path.read_text())
        record["environment"]["device"]["name"] = "another"
        record["stamps"] = ["quick"]
        path.write_text(json.dumps(record))
    code, text = call("compare", str(finished_run), str(copy))
    assert code == 2
    assert "another device" in text
    assert "stamped quick" in text
    code, text = call("compare", str(finished_run), str(copy), "--force")
    assert code == 0
    assert "x1.000" in text


def test_doctor_looks_at_everything() -> None:
    code, text = call("doctor")
    assert code == 0
    for name in ("device", "threads", "memory", "load", "versions", "code", "model", "results", "lock", "plug-ins"):
        assert name in text
