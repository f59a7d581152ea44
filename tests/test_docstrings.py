"""Docstrings say what is there: their sections against the code, and their examples as tests."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import textwrap

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.docstrings import entries

ROOT = pathlib.Path(__file__).parents[1]

#: Runs when it is imported: the process that converts.
_SCRIPTS = {"tfcompress.export.conversion.worker"}
MODULES = sorted(
    {m.name for m in pkgutil.walk_packages([str(ROOT / "tfcompress")], "tfcompress.")} - _SCRIPTS
)


def own(module, kind):
    """Classes or functions that a module defines, with the methods of its classes."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if kind(value):
            yield value
        if inspect.isclass(value) and kind is inspect.isfunction:
            for method in vars(value).values():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(method) and method.__module__ == module.__name__:
                    yield method


def assigned(cls: type) -> set[str]:
    """Names that the methods of a class assign on `self`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def attributes(cls: type) -> set[str]:
    """What an instance has: members, annotated names and what its methods assign."""
    names = set(dir(cls))
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("tfcompress", __name__.split(".")[0]):
            names |= assigned(base) | set(vars(base).get("__annotations__", {}))
    if dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    return names


def parameters(function) -> set[str]:
    """Names of the parameters; without `self`, or `cls` of a class method."""
    is_method = "." in function.__qualname__
    return set(inspect.signature(function).parameters) - ({"self", "cls"} if is_method else set())


def test_sections_are_read():
    docstring = """Does.

    Args:
        a: One,
            on two lines: no entry.
        b, c (int): Two.
        **kwargs: More.

    Returns:
        d: No argument.
    """
    assert entries(docstring, "Args") == ["a", "b", "c", "kwargs"]
    assert entries(docstring, "Raises") == []


def test_attributes_are_found():
    @dataclasses.dataclass
    class Example:
        first: int

        def method(self):
            self.second = 1

        @property
        def third(self):
            return 3

    assert {"first", "second", "third"} <= attributes(Example)
    assert "fourth" not in attributes(Example)


def misnamed(module) -> list[str]:
    """What the docstrings of a module name and its code has not."""
    found = []
    place = module.__name__.partition(".")[2]
    for cls in own(module, inspect.isclass):
        name = f"{place}.{cls.__name__}"
        for attribute in entries(cls.__doc__, "Attributes"):
            if attribute not in attributes(cls):
                found.append(f"{name} has no attribute {attribute!r}")
        for argument in entries(cls.__doc__, "Args"):
            if argument not in parameters(cls.__init__):
                found.append(f"{name}() has no argument {argument!r}")
    for function in own(module, inspect.isfunction):
        name = f"{place}.{function.__qualname__}"
        for argument in entries(function.__doc__, "Args"):
            if argument not in parameters(function):
                found.append(f"{name}() has no argument {argument!r}")
    return found


def test_sections_name_what_exists():
    found = [text for name in MODULES for text in misnamed(importlib.import_module(name))]
    assert found == []


def public_callables():
    """`{qualified name: function}` of the public names: functions, constructors, methods."""
    values = {name: getattr(tfc, name) for name in tfc.__all__ if name != "__version__"}
    values.update(
        {f"callbacks.{name}": getattr(tfc.callbacks, name) for name in tfc.callbacks.__all__}
    )
    return {name: value for name, value in values.items() if callable(value)}


def undocumented(value) -> set[str]:
    """Arguments that the docstring of a function or class says nothing about."""
    documented = set(entries(value.__doc__, "Args"))
    if dataclasses.is_dataclass(value):
        expected = {f.name for f in dataclasses.fields(value) if not f.name.startswith("_")}
    elif inspect.isclass(value):
        expected = parameters(value.__init__) if "__init__" in vars(value) else set()
    else:
        expected = parameters(value)
    if inspect.isclass(value):
        documented |= set(entries(value.__doc__, "Attributes"))
    # What goes to the base class of Keras is documented there.
    return expected - documented - {"args", "kwargs"}


def test_public_arguments_are_documented():
    gaps = {name: undocumented(value) for name, value in public_callables().items()}
    assert {name: gap for name, gap in gaps.items() if gap} == {}


def with_examples() -> list[str]:
    return [
        name
        for name in MODULES
        if ">>> " in pathlib.Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", with_examples())
def test_examples_run(name, tmp_path, monkeypatch):
    """Examples may use `keras`, `np` and `tfc` without importing them."""
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    output: list[str] = []
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"keras": keras, "np": np, "tfc": tfc}
    for test in finder.find(importlib.import_module(name), globs=names):
        runner.run(test, out=output.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)
