"""Where the values of a JSON or YAML file are: the line of each key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Keys and indices that lead to a value.
Path = tuple[str | int, ...]


def parse_json(text: str) -> tuple[Any, Mapping[Path, int]]:
    """Values of a JSON text, and the line of each, from 1.

    Raises:
        ValueError: It is no JSON; the message has line and column.
    """
    values = json.loads(text)
    lines: dict[Path, int] = {}
    path: list[str | int] = []
    # Of each open container, whether it is a list.
    is_list: list[bool] = []
    key, position, line = "", 0, 1
    while position < len(text):
        character = text[position]
        if character == "\n":
            line += 1
        elif character == '"':
            string, end = json.decoder.scanstring(text, position + 1)  # type: ignore[attr-defined]
            if text[end:].lstrip().startswith(":") and is_list and not is_list[-1]:
                key = string
                path[-1] = key
                lines[tuple(path)] = line
            position = end
            continue
        elif character in "{[":
            is_list.append(character == "[")
            path.append(0 if character == "[" else "")
            if character == "[":
                lines.setdefault(tuple(path), line)
        elif character in "}]":
            is_list.pop()
            path.pop()
        elif character == "," and is_list and is_list[-1]:
            path[-1] = int(path[-1]) + 1
            rest = text[position + 1 :]
            blank = rest[: len(rest) - len(rest.lstrip())]
            lines[tuple(path)] = line + blank.count("\n")
        position += 1
    return values, lines


def parse_yaml(text: str) -> tuple[Any, Mapping[Path, int]]:
    """Values of a YAML text, and the line of each, from 1.

    Raises:
        ValueError: PyYAML is not installed, or the text is no YAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "Expected PyYAML, which reads recipes in YAML: pip install tfcompress[yaml]. JSON "
            "needs nothing."
        ) from error
    try:
        root, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error
    lines: dict[Path, int] = {}
    stack: list[tuple[Path, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        for i, item in enumerate(node.value if isinstance(node, yaml.CollectionNode) else ()):
            key_node, child = item if isinstance(node, yaml.MappingNode) else (item, item)
            step = key_node.value if isinstance(node, yaml.MappingNode) else i
            lines[(*path, step)] = key_node.start_mark.line + 1
            stack.append(((*path, step), child))
    return values, lines
