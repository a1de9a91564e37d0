"""Reading YAML that says what it means: no duplicate keys, no aliases, nothing executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bench.errors import ConfigError, Problem, UsageError


class _Strict(yaml.SafeLoader):
    """SafeLoader without anchors and aliases, with unique keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not allowed; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it does not parse, is empty, or is no mapping; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = f"{error.strerror}; `bench list` names those that are there" if isinstance(error, OSError) else str(error)
        raise UsageError(f"config {path}: cannot be read: {why}") from error
    data = parse(text, str(path))
    if data is None:
        raise ConfigError(str(path), [Problem("", "the file is empty; see configs/ for examples")])
    if not isinstance(data, dict):
        raise ConfigError(str(path), [Problem("", f"holds a {type(data).__name__}, a mapping of settings is expected")])
    return data


def parse(text: str, origin: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        ConfigError: it does not parse, with the line.
    """
    try:
        return yaml.load(text, Loader=_Strict)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(origin, [Problem(line, str(error.problem or error.context))]) from error
    except yaml.YAMLError as error:
        raise ConfigError(origin, [Problem("", str(error).splitlines()[0])]) from error
