from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import registry
from bench.errors import BenchError, UsageError

GOOD = """
from bench.registry import register
from techniques.decoding.autoregressive import Autoregressive
@register
class {name}(Autoregressive):
    '''One.'''
    presets = {presets}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "broken", [])
    for catalogue in (registry.techniques, registry.workloads):
        monkeypatch.setattr(catalogue, "_entries", dict(catalogue._entries))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "foreign"]:
        del sys.modules[name]


def load() -> None:
    module = registry._import("foreign")
    assert module is not None
    registry._import_below(module)


def test_a_broken_plugin_is_named_and_the_rest_goes_on(package: Path) -> None:
    (package / "aaa.py").write_text("import not_there")
    (package / "bbb.py").write_text(GOOD.format(name="Bbb", presets="{'bbb_two': {}}"))
    (package / "core").mkdir()
    (package / "core" / "__init__.py").write_text("raise SystemError('core is no plug-in')")
    load()
    assert [b.module for b in registry.broken] == ["foreign.aaa"]
    assert "not_there" in registry.broken[0].reason
    assert registry.techniques["bbb"].cls.__name__ == "Bbb"
    assert registry.techniques["bbb_two"].is_preset


def test_file_and_class_have_one_name(package: Path) -> None:
    (package / "bbb.py").write_text(GOOD.format(name="Other", presets={}))
    load()
    assert "a file named bbb.py holds Bbb" in registry.broken[0].reason


def test_a_name_is_taken_once(package: Path) -> None:
    (package / "lora.py").write_text(GOOD.format(name="Lora", presets={}))
    load()
    assert "registered twice" in registry.broken[0].reason
    assert registry.techniques["lora"].cls.__module__ == "techniques.finetuning.lora"


def test_did_you_mean() -> None:
    with pytest.raises(UsageError, match="did you mean 'prompt_lookup'"):
        registry.techniques["promt_lookup"]
    assert "allowed: a, b" in registry.did_you_mean("xyz", ["a", "b"])


def test_only_plugins_are_registered() -> None:
    with pytest.raises(BenchError, match="neither"):
        registry.register(int)
