"""What tells a metric or a loss from another one: its code and all that it computes with.

Names do not: two lambdas have one, and an edited function keeps its own.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import pathlib
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.distillation.checksum import checksum_of_arrays, checksum_of_teacher

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, type(Ellipsis))
_ARRAYS = (np.ndarray, tf.Tensor, tf.Variable, keras.Variable)
_NAMED = (types.BuiltinFunctionType, types.MethodDescriptorType, np.ufunc)
_INSTALLED = tuple(
    pathlib.Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib")
)


class _Unknown(Exception):
    """Something of which nothing is known but its address."""


def identity_of(value: Any, what: str) -> str:
    """SHA-256 of what decides the numbers of a metric or a loss.

    Of a function that is its code, defaults, the values that it closes over and the globals that
    it reads; of a Keras metric or loss its class and configuration without its name, which Keras
    counts up. What an installed package defines is known by its name.

    Args:
        value: A function, a Keras object, a structure of these, or plain values.
        what: What it is, for the message.

    Raises:
        ValueError: It holds something that cannot be told from another one.
    """
    try:
        described = repr(_Description().of(value))
    except (_Unknown, RecursionError) as error:
        raise ValueError(
            f"Expected a {what} whose code and values can be read, for a folder (path=) belongs to "
            f"one {what}. Received: one that computes with {error}. Give a function of plain "
            "values and arrays, or leave out path=."
        ) from error
    return hashlib.sha256(described.encode()).hexdigest()


class _Description:
    """Plain values that stand for others; a function or object that is met again is its number."""

    def __init__(self):
        self._seen: dict[int, tuple[int, Any]] = {}

    def of(self, value: Any) -> Any:
        """What stands for a value."""
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if isinstance(value, _ARRAYS):
            return checksum_of_arrays({"": np.asarray(value)})
        if isinstance(value, Mapping):
            return [(self.of(k), self.of(v)) for k, v in value.items()]
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(repr(self.of(item)) for item in value)
        if id(value) in self._seen:
            return "again", self._seen[id(value)][0]
        # Kept, so that no other object gets its address.
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, type):
            return self._class(value)
        return self._callable(value) or self._object(value)

    def _callable(self, value: Any) -> Any:
        """A function in one of its forms; `None` for an object."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            return [self.of(part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, _NAMED):
            return getattr(value, "__module__", None), getattr(value, "__qualname__", str(value))
        inner = getattr(value, "python_function", None) or getattr(value, "__wrapped__", None)
        return None if inner is None else self.of(inner)

    def _function(self, function: types.FunctionType) -> Any:
        named = function.__module__, function.__qualname__
        is_installed = _is_installed(function.__module__)
        if is_installed and "<locals>" not in function.__qualname__:
            return named
        closed = [cell.cell_contents for cell in function.__closure__ or ()]
        held = [function.__defaults__, function.__kwdefaults__, closed]
        described = [*map(self.of, held), _code(function.__code__)]
        if is_installed:
            return [named, described]
        names = sorted(set(_globals(function.__code__)) & set(function.__globals__))
        return [*described, [(name, self.of(function.__globals__[name])) for name in names]]

    def _class(self, value: type) -> Any:
        named = value.__module__, value.__qualname__
        if _is_installed(value.__module__):
            return named
        parts = {
            name: part.fget if isinstance(part, property) else getattr(part, "__func__", part)
            for name, part in vars(value).items()
        }
        functions = {n: p for n, p in parts.items() if isinstance(p, types.FunctionType)}
        return [named, [self.of(base) for base in value.__bases__], self.of(functions)]

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, keras.Layer):
            return checksum_of_teacher(value)
        if isinstance(value, keras.metrics.Metric | keras.losses.Loss):
            with warnings.catch_warnings():
                # Of functions without a name, which are described below.
                warnings.simplefilter("ignore", UserWarning)
                config = value.get_config()
            config = {n: v for n, v in config.items() if n != "name" and not _is_lambda(v)}
            # A configuration has the names of functions, and may leave out what a user added.
            own = {n: v for n, v in vars(value).items() if isinstance(v, types.FunctionType)}
            if not _is_installed(kind.__module__):
                public = {n: v for n, v in vars(value).items() if n[0] != "_" and n != "name"}
                own |= {n: v for n, v in public.items() if isinstance(v, (*_PLAIN, list, tuple))}
            return [self.of(kind), self.of(config), self.of(own)]
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return [self.of(kind), self.of(fields)]
        if _is_installed(kind.__module__) or not hasattr(value, "__dict__"):
            raise _Unknown(f"{value!r} of type {kind.__name__}")
        return [self.of(kind), self.of(vars(value))]


def _is_lambda(config: Any) -> bool:
    """Whether an entry of a configuration is a function without a name, by its place in a file."""
    return isinstance(config, dict) and config.get("class_name") == "__lambda__"


def _code(code: types.CodeType) -> Any:
    """A code object without its place in a file."""
    constants = [
        _code(c)
        if isinstance(c, types.CodeType)
        else sorted(map(repr, c))
        if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]
    return code.co_code.hex(), constants, code.co_names, code.co_argcount, code.co_flags


def _globals(code: types.CodeType) -> Iterator[str]:
    """The names of globals that a code object and those inside it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether a module is of the standard library or of an installed package."""
    top = (module or "").partition(".")[0]
    if top in (*sys.stdlib_module_names, "tfcompress"):
        return True
    # The main module is the user's, also where a package runs it (python -m).
    file = None if top == "__main__" else getattr(sys.modules.get(top), "__file__", None)
    return file is not None and any(folder in pathlib.Path(file).parents for folder in _INSTALLED)
