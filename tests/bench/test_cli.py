"""The command line as a person meets it: one line per mistake, no traceback, the documented exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fabricated import DEVICE, ENVIRONMENT, pair, record, run
from typer.testing import CliRunner

from bench import cli, suites
from bench.errors import BenchError


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *arguments], capture_output=True, text=True, timeout=300)


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
        (["run", "smoke", "--model", "nobody/nothing-of-the-kind"], "or give the folder of a saved model"),
        (["run", "zzz"], "is no config, family or technique; `bench list` names all"),
        (["run", "grounded_chat"], "is a workload; run the family 'decoding'"),
        (["run", "/not/there.yaml"], "No such file or directory; `bench list` names those that are there"),
        (["run", "prompt_lookup", "--set", "ngram=3"], "did you mean 'prompt_lookup.ngram'?"),
        (["run", "smoke", "--set", "seeds=a"], "seeds: 'a': a list is expected, as [0, 1, 2]"),
        (["show", "lorra"], "did you mean 'lora'"),
        (["report", "/not/there"], "holds no run"),
        (["report"], "name the folder of a run"),
        (["report", "--micro", "/not/there"], "/not/there: No such file"),
        (["report", "/not/there", "--micro", "/not/there"], "give one of them"),
        (["new", "technique", "my_way", "--family", "decodin"], "did you mean 'decoding'"),
        (["compare", "/not/there", "/not/there"], "holds no run"),
        (["compare", "/not/there", "/not/there", "--fail-on", "trougput<-5%"], "did you mean 'throughput'"),
        (["compare", "/not/there", "/not/there", "--strict"], "--strict goes with --fail-on"),
        (["reproduce", "/not/there"], "holds no run"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    code, text = call(*arguments)
    assert code == 2, text
    assert message in text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json; give a folder saved by transformers"),
        ({"config.json": "{"}, "config.json cannot be read"),
        ({"config.json": "[]", "model.safetensors": ""}, "config.json cannot be read"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "has no weights as *.safetensors"),
    ],
)
@pytest.mark.parametrize("option", ["--model", "--draft"])
def test_a_folder_that_is_no_model_is_told_before_anything_starts(
    files: dict[str, str], message: str, option: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    code, text = call("run", "prompt_lookup", "--dry-run", option, str(tmp_path))
    assert code == 2
    assert message in text
    assert text.count("\n") == 0


def test_a_model_of_several_parts_has_a_plan_without_times(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 8}}')
    (tmp_path / "model.safetensors").touch()
    code, text = call("run", "prompt_lookup", "--dry-run", "--model", str(tmp_path))
    assert code == 0, text
    assert "unknown" in text


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
    code, text = call("run", "prompt_lookup", "--dry-run", "--set", "replicates=10")
    assert code == 0
    assert "processes" in text
    assert "timing and memory" in text
    assert "23 processes" in text  # 1 builds, 2 score, 2 x 10 time


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


@pytest.mark.parametrize("name", suites.named())
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


def test_compare_refuses_what_is_not_comparable(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "device": {**DEVICE, "name": "another"}}
    a, b = pair(tmp_path, [record("arm")], [record("arm", environment=environment, stamps=["quick"])])
    code, text = call("compare", str(a.folder), str(b.folder))
    assert code == 2
    assert "another device" in text
    assert "stamped quick" in text
    code, text = call("compare", str(a.folder), str(b.folder), "--force")
    assert code == 0
    assert "x1.000" in text


def test_compare_fails_on_a_regression_that_the_data_show(tmp_path: Path) -> None:
    a, b = pair(tmp_path, [record("arm", rounds=3)], [record("arm", rounds=3, seconds=1.3, nll=3.2, salt="b")])
    runs = ["compare", str(a.folder), str(b.folder)]
    assert call(*runs)[0] == 0
    assert call(*runs, "--fail-on", "nll>+0.1")[0] == 1
    code, text = call(*runs, "--fail-on", "throughput<-5%")
    assert code == 0
    assert "CANNOT TELL throughput<-5%: c arm: 3 rounds, at least 5 are needed" in text
    assert call(*runs, "--fail-on", "throughput<-5%", "--strict")[0] == 1
    assert call(*runs, "--fail-on", "tpot>+5%")[0] == 2


@pytest.mark.parametrize(
    ("form", "start"), [("md", "Second run: `"), ("csv", "comparison,arm,metric,unit,"), ("json", '{\n "first": ')]
)
def test_compare_prints_one_format_and_nothing_beside_it(tmp_path: Path, form: str, start: str) -> None:
    a, b = pair(tmp_path, [record("arm")], [record("arm", salt="b")])
    code, text = call("compare", str(a.folder), str(b.folder), "--format", form, "--fail-on", "nll>+0.1")
    assert code == 0
    assert text.startswith(start)
    assert "HOLDS" in text


def test_reproduce_says_what_held_in_a_run_that_is_there(tmp_path: Path) -> None:
    base, arm = record("base"), record("arm", seconds=0.8)
    a, b = pair(tmp_path, [base, arm], [base, record("arm", seconds=1.25)])
    code, text = call("reproduce", str(a.folder), "--against", str(b.folder))
    assert code == 1
    assert "2 held, 1 FLIPPED" in text
    code, text = call("reproduce", str(a.folder), "--against", str(b.folder), "--json")
    assert code == 1
    assert json.loads(text)["event"] == "reproduction"
    code, text = call("reproduce", str(a.folder), "--against", str(b.folder), "--dry-run")
    assert code == 2
    assert "--against runs nothing" in text


def test_reproduce_runs_the_stored_config_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import api

    block = {"workload": {"name": "grounded_chat", "new_tokens": 7}, "arms": ["autoregressive"]}
    config = {"name": "x", "model": "tiny:llama", "replicates": 5, "comparisons": [block]}
    base, arm = record("base"), record("arm", seconds=0.8)
    a, b = run(tmp_path / "a", [base, arm], config=config), run(tmp_path / "b", [base, arm])
    code, text = call("reproduce", str(a.folder), "--dry-run")
    assert code == 0
    assert "7 processes" in text  # 1 builds, 1 scores, 5 time

    asked: list[Any] = []
    monkeypatch.setattr(api, "run", lambda raw, out, **_: asked.append((raw, out)) or api.Run(b))
    code, text = call("reproduce", str(a.folder), "--out", str(tmp_path / "out"), "--max-time", "3h")
    assert (code, asked) == (0, [({**config, "device": "cpu", "dtype": "float32", "max_time": "3h"}, tmp_path / "out")])
    assert "3 held" in text


@pytest.mark.parametrize(
    "words", [["compare", "{a}", "{b}", "--fail-on", "nll>+0.1"], ["reproduce", "{a}", "--against", "{b}"]]
)
def test_two_runs_are_read_without_torch(tmp_path: Path, words: list[str]) -> None:
    arms = [record("base"), record("arm", seconds=0.8)]
    a, b = pair(tmp_path, arms, arms)
    arguments = [word.format(a=a.folder, b=b.folder) for word in words]
    block = f"import sys; sys.modules['torch'] = None; sys.argv = ['bench', *{arguments!r}]; from bench import cli"
    done = subprocess.run([sys.executable, "-c", f"{block}; cli.main()"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_version_is_told_without_torch() -> None:
    block = "import sys; sys.modules['torch'] = None; sys.argv = ['bench', '--version']; from bench import cli"
    done = subprocess.run([sys.executable, "-c", f"{block}; cli.main()"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"bench {version('llm-efficiency-bench')}\n"


def test_doctor_looks_at_everything() -> None:
    code, text = call("doctor")
    assert code == 0
    for name in ("device", "threads", "memory", "load", "versions", "code", "model", "results", "lock", "plug-ins"):
        assert name in text
