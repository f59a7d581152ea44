"""TensorFlow functions on symbolic Keras tensors: each as the `keras.ops` calls that equal it.

Keras' symbolic tensors refuse raw TensorFlow functions. While `translated()` is active,
TensorFlow's dispatch of such a call (`tf.__internal__.dispatch`) ends here, and the table of
`tf_translations` answers it. What is not in the table raises `UnknownFunction`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfcompress.model.tf_translations import translation_of

_LOCAL = threading.local()
_UNSUPPORTED = tf.__internal__.dispatch.GlobalOpDispatcher.NOT_SUPPORTED


class UnknownFunction(Exception):
    """A TensorFlow function that has no translation, or none with these arguments."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within it, TensorFlow functions of the table accept symbolic Keras tensors (this thread).

    Raises:
        UnknownFunction: On leaving it by an error behind a function that has no translation.
    """
    before = getattr(_LOCAL, "is_active", False), getattr(_LOCAL, "unknown", None)
    _LOCAL.is_active, _LOCAL.unknown = True, None
    try:
        yield
    except (TypeError, ValueError) as error:
        if _LOCAL.unknown is None:
            raise
        raise UnknownFunction(
            f"it calls TensorFlow's {_LOCAL.unknown}, which has no translation"
        ) from error
    finally:
        _LOCAL.is_active, _LOCAL.unknown = before


class _Dispatcher(tf.__internal__.dispatch.GlobalOpDispatcher):
    """What TensorFlow asks when a function refuses its arguments."""

    def handle(self, op: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not getattr(_LOCAL, "is_active", False):
            return _UNSUPPORTED
        leaves = tree.flatten((args, kwargs))
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            return _UNSUPPORTED
        name = getattr(op, "__name__", str(op))
        translation = translation_of(op)
        if translation is None:
            # A function that calls this one may be known. It is asked next.
            _LOCAL.unknown = name
            return _UNSUPPORTED
        _LOCAL.unknown = None
        try:
            return translation(*args, **{k: v for k, v in kwargs.items() if k != "name"})
        except TypeError as error:
            raise UnknownFunction(
                f"it calls TensorFlow's {name} with arguments that have no translation ({error})"
            ) from error


_Dispatcher().register()
