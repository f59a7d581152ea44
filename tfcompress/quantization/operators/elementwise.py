"""A function of each value: in int8 a table from the 256 codes of its input to codes of its output.

In training the Keras function computes on the rounded values of its input. In inference it computes
on the 256 values that a code may stand for, and every value is looked up among the results. The
file holds these results as codes, so that it gives what the Keras model gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.model.rewrite import fresh
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.registry import (
    OperatorSpec,
    Role,
    activation_name,
    register,
)
from tfcompress.quantization.placement.upstream import upstream_quantizer

#: Codes of an int8 tensor, smallest first.
CODES = np.arange(-128, 128)


class CodeTable(Linked, keras.layers.Layer):
    """Base class of f(x), value by value, computed in float32 under any policy.

    Where f is not finite (log 0, 1/0), a code of x takes the value of the nearest code at which it
    is, of the larger one of two; a gradient that is not finite is 0. Before ranges are known, an
    infinite value becomes the largest or smallest finite one of the tensor, NaN the smallest.
    """

    channels_like = keras.layers.Identity

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("dtype", None)
        super().__init__(dtype="float32", **kwargs)
        self.supports_masking = True
        # Call index → the quantizer of the input, or `None`.
        self._sources = Links()

    def function(self, x: tf.Tensor) -> tf.Tensor:
        """f(x)."""
        raise NotImplementedError(
            f"Expected a layer that implements function(x). Received: {type(self).__name__}."
        )

    @property
    def kernel(self) -> str:
        """The name of LiteRT's kernel of f; empty where it has none that is exact."""
        return ""

    @property
    def is_total(self) -> bool:
        """Whether f and its slope are known to be finite at every number."""
        return False

    def link(self, inputs: Any, call_index: int) -> None:
        self._sources.set(call_index, upstream_quantizer(inputs))

    def values(self, scale: tf.Tensor, zero_point: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """f at every code.

        Args:
            scale: Of the codes of x, a positive scalar.
            zero_point: Of the codes of x.

        Returns:
            `(values, places)`, (256,) each: f by the code of x, finite wherever f is at some
            code, and which code (counted from 0) each takes its value from; `None` for its own.
        """
        values = self.function(_grid(scale, zero_point))
        if self.is_total:
            return values, None
        places = _nearest_finite(values)
        return tf.gather(values, places), places

    def has_table(self, call_index: int = 0) -> bool:
        """Whether the range of x is known."""
        source: TensorQuantizer | None = self._sources.get(call_index)
        return source is not None and float(source.active_scale()) > 0

    def table(self, call_index: int = 0) -> np.ndarray:
        """f by the code of x, with the range that x has: (256,) float32.

        Raises:
            ValueError: The range of x is not known, or f is finite nowhere in it.
        """
        if not self.has_table(call_index):
            raise ValueError(
                f"Expected a known range of the input of {self.name!r}. Received: none. Calibrate "
                "the model or train it first."
            )
        source: TensorQuantizer = self._sources.get(call_index)
        values = self.values(source.scale, source.zero_point)[0].numpy()
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"Expected a function that is finite somewhere in the range of its input. "
                f"Received: {self.name!r}, whose input has the scale {float(source.scale):g} and "
                f"the zero point {float(source.zero_point):g}."
            )
        return values

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        source: TensorQuantizer | None = self._sources.get(call_index)
        if self.is_total and (training or source is None):
            return self.function(inputs)
        if source is None:
            return _finite_values(self.function(_finite_gradient(inputs)))
        active = source.active_scale()
        known = active > 0
        scale, zero_point = tf.where(known, active, 1.0), source.zero_point
        values, places = self.values(scale, zero_point)
        indices = tf.cast(tf.round(inputs / scale) + zero_point + 128.0, tf.int32)
        indices = tf.clip_by_value(indices, 0, 255)
        if places is None:
            outputs = self.function(inputs)
        else:
            taken = tf.gather(places, indices)
            is_moved = known & (taken != indices)
            moved = tf.gather(_grid(scale, zero_point), taken)
            x = _replaced(_finite_gradient(inputs), tf.where(is_moved, moved, inputs))
            outputs = _finite_values(self.function(x))
        if training:
            return outputs
        return _replaced(outputs, tf.where(known, tf.gather(values, indices), outputs))

    def compute_output_spec(
        self,
        inputs: keras.KerasTensor,
        training: bool | None = None,
        call_index: int = 0,
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return config


@keras.saving.register_keras_serializable(package="tfcompress")
class ElementwiseFunction(CodeTable):
    """A layer or `keras.ops` operation that computes each value by itself.

    Args:
        operation: What it takes the place of.
        arguments: The positional arguments of a call: numbers, and `None` in place of x.
    """

    def __init__(
        self, operation: Any, arguments: Sequence[float | None] = (None,), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(operation, dict):
            operation = keras.saving.deserialize_keras_object(operation)
        # Behind a function: Keras would track the layer as a part of this one.
        self._original: Callable[[], Any] = lambda: operation
        self.arguments = tuple(arguments)

    @property
    def original(self) -> Any:
        """The layer or operation that it takes the place of."""
        return self._original()

    @property
    def kernel(self) -> str:
        return litert_kernel(self.original)

    @property
    def is_total(self) -> bool:
        return function_name(self.original) in _TOTAL and self.arguments == (None,)

    def stripped(self) -> list[Any]:
        original = fresh(self.original)
        if self.arguments == (None,):
            return [original]
        return [lambda x: original(*(x if a is None else a for a in self.arguments))]

    def function(self, x: tf.Tensor) -> tf.Tensor:
        arguments = [x if argument is None else argument for argument in self.arguments]
        return tf.convert_to_tensor(self.original.call(*arguments))

    def get_config(self) -> dict[str, Any]:
        operation = keras.saving.serialize_keras_object(self.original)
        return {**super().get_config(), "operation": operation, "arguments": list(self.arguments)}


def _grid(scale: tf.Tensor, zero_point: tf.Tensor) -> tf.Tensor:
    """The real values of all codes."""
    return (tf.constant(CODES, tf.float32) - zero_point) * scale


def _nearest_finite(values: tf.Tensor) -> tf.Tensor:
    """Place → the nearest place of a finite value, the larger one of two; (256,) int32."""
    here = tf.range(tf.size(values))
    distance = tf.abs(here[:, None] - here[None, :]) * 2 + tf.cast(
        here[None, :] < here[:, None], tf.int32
    )
    is_finite = tf.math.is_finite(values)[None, :]
    return tf.argmin(tf.where(is_finite, distance, 2**20), axis=1, output_type=tf.int32)


@tf.custom_gradient
def _finite_gradient(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`x`; its gradient is 0 where it would not be finite."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.math.is_finite(upstream), upstream, tf.zeros_like(upstream))

    return tf.identity(x), gradient


@tf.custom_gradient
def _replaced(x: tf.Tensor, by: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`by`, with the gradient of `x`."""
    return tf.identity(by), lambda upstream: (upstream, None)


@tf.custom_gradient
def _finite_values(y: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`y`, +∞ replaced by the largest finite value, −∞ and NaN by the smallest; 0 for none."""
    is_finite = tf.math.is_finite(y)
    largest = tf.reduce_max(tf.where(is_finite, y, y.dtype.min))
    smallest = tf.reduce_min(tf.where(is_finite, y, y.dtype.max))
    end = tf.where(tf.reduce_any(is_finite), tf.where(y > 0, largest, smallest), 0.0)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.where(is_finite, upstream, tf.zeros_like(upstream))

    return tf.where(is_finite, y, end), gradient


# Functions that are finite, with a finite slope, at every number that a code can stand for.
_TOTAL = frozenset(
    (
        *("absolute", "arcsinh", "arctan", "ceil", "celu", "clip", "cos", "deg2rad", "elu", "erf"),
        *("floor", "gelu", "hardshrink", "hardtanh", "logsigmoid", "mish", "rad2deg", "round"),
        *(
            "leakyrelu",
            "relu",
            "selu",
            "sign",
            "sin",
            "softshrink",
            "softplus",
            "softsign",
            "sparseplus",
            "squareplus",
        ),
        *("sparsesigmoid", "tanhshrink", "threshold", "trunc"),
    )
)


def function_name(operation: Any) -> str:
    """Keras' name of the function of a layer or operation, without underscores."""
    if isinstance(operation, layers.Activation):
        name = activation_name(operation.activation) or ""
    else:
        is_own = not type(operation).__module__.startswith("keras.")
        name = "" if is_own else type(operation).__name__.lower()
    return name.replace("_", "")


def litert_kernel(operation: Any) -> str:
    """The name of LiteRT's kernel of a function; empty where it has none that is exact."""
    config, name = operation.get_config(), function_name(operation)
    if name == "elu":
        return "elu" if config.get("alpha", 1.0) == 1.0 else ""
    if name == "gelu":
        return "gelu_tanh" if config.get("approximate", False) else "gelu"
    return {"exponential": "exp", "exp": "exp", "log": "log"}.get(name, "")


def _outside(layer: CodeTable) -> str | None:
    # XNNPACK has an ELU. Any other table is a BITCAST and a CAST, too.
    return None if layer.kernel == "elu" else (layer.kernel.split("_")[0].upper() or "GATHER")


def as_table(b: Builder, node: Node) -> Value | None:
    """A table of 256 codes."""
    values = node.inputs
    constants = [a for a in node.args if not isinstance(a, Value)]
    is_known = all(isinstance(c, (bool, int, float)) for c in constants)
    is_known = is_known and all(argument is None for argument in node.kwargs.values())
    if len(values) != 1 or not is_known or not values[0].is_float:
        return None
    if len(node.args) != len(constants) + 1:
        return None
    arguments = [None if isinstance(a, Value) else float(a) for a in node.args]
    operation = fresh(node.operation)
    return b.call(
        lambda name: ElementwiseFunction(operation, arguments, name=name),
        "",
        values[0],
        variant=",".join(map(str, arguments)),
    )


def _whole_reason(node: Node) -> str:
    """Why a call that is no table stays in float."""
    if len(node.inputs) > 1:
        return "a table is a function of one tensor"
    return "its arguments beside the tensor are not plain numbers"


#: The entry of a function of each value.
TABLE = OperatorSpec(role=Role.ELEMENTWISE, decompose=as_table, call_reason=_whole_reason)

#: The entry of the layers that are tables.
CODE_TABLE = OperatorSpec(
    role=Role.ELEMENTWISE,
    quantized=lambda layer: type(layer).from_config(layer.get_config()),
    outside=_outside,
    table=lambda layer, call_index: (layer.table(call_index), layer.kernel),
)
register(ElementwiseFunction, spec=CODE_TABLE)
