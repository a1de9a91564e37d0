from __future__ import annotations

from pathlib import Path

import pytest

from bench import yaml_file
from bench.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("- a\n- b\n", "list"),
        ("name: x\nname: y\n", "line 2, column 1: the key 'name' stands twice"),
        ("a: {b: 1, b: 2}\n", "'b' stands twice"),
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("a: [1, 2\nb: 3\n", "line 2"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        yaml_file.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        yaml_file.load(tmp_path / "none.yaml")


def test_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: [x, y]\n")
    assert yaml_file.load(path) == {"a": 1, "b": ["x", "y"]}
