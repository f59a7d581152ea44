"""Where the values of a JSON or YAML file are: the line of each key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: Keys and indices that lead to a value.
Path = tuple[str | int, ...]

_BLANKS = re.compile(r"\s*")
#: Levels of a recipe, which has five, that lines are noted for. The path of a key has its length.
_DEPTH = 16


def parse_json(text: str) -> tuple[Any, Mapping[Path, int]]:
    """Values of a JSON text, and the line of each, from 1.

    Raises:
        ValueError: It is no JSON; the message has line and column.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    lines: dict[Path, int] = {}
    path: list[str | int] = []
    # Of each open container, whether it is a list.
    is_list: list[bool] = []
    key, position, line = "", 0, 1

    def note(line: int) -> None:
        if len(path) <= _DEPTH:
            lines[tuple(path)] = line

    while position < len(text):
        character = text[position]
        if character == "\n":
            line += 1
        elif character == '"':
            string, end = json.decoder.scanstring(text, position + 1)  # type: ignore[attr-defined]
            if text.startswith(":", _blank(text, end)) and is_list and not is_list[-1]:
                key = string
                path[-1] = key
                note(line)
            position = end
            continue
        elif character in "{[":
            is_list.append(character == "[")
            path.append(0 if character == "[" else "")
            if character == "[":
                note(line)
        elif character in "}]":
            is_list.pop()
            path.pop()
        elif character == "," and is_list and is_list[-1]:
            path[-1] = int(path[-1]) + 1
            item = _blank(text, position + 1)
            note(line + text.count("\n", position, item))
        position += 1
    return values, lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {twice[0]!r} stands twice in one object")
    return found


def _blank(text: str, position: int) -> int:
    """Where the blanks from a position on end."""
    match = _BLANKS.match(text, position)
    return position if match is None else match.end()


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

    class Loader(yaml.SafeLoader):
        """Without aliases, by which a text of a few lines refers to a value billions of times."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(problem="aliases (*name)", problem_mark=mark)
            return super().compose_node(parent, index)

    try:
        loader = Loader(text)
        root = loader.get_single_node()
        values = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"no YAML that recipes are written in: {error}") from error
    lines: dict[Path, int] = {}
    stack: list[tuple[Path, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if len(path) > _DEPTH:
            continue
        for i, item in enumerate(node.value if isinstance(node, yaml.CollectionNode) else ()):
            key_node, child = item if isinstance(node, yaml.MappingNode) else (item, item)
            step = key_node.value if isinstance(node, yaml.MappingNode) else i
            if (*path, step) in lines:
                line = key_node.start_mark.line + 1
                raise ValueError(f"the key {step!r} stands twice, again in line {line}")
            lines[(*path, step)] = key_node.start_mark.line + 1
            stack.append(((*path, step), child))
    return values, lines
