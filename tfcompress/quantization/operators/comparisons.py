"""Comparisons of codes, and choices by them: `where` with a computed condition, masks, bins.

A comparison with a constant is one of whole numbers in the file: the codes as int32 and, in place
of the constant, the code from which on it holds. It gives what the values of the codes give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.model.linking import Linked, Links
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.elementwise import ElementwiseFunction
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.free_ranges import with_room_for
from tfcompress.quantization.operators.masked_scores import masked_scores
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.placement.upstream import upstream_quantizer


class _Part(layers.Layer):
    """Mixin of parts that give a mask to nobody."""

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


# --- comparisons --------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfcompress")
class Equals(Linked, _Part):
    """Whether x has the code that a number is rounded to; a number between two codes is no value.

    Args:
        value: The number.
        negated: Whether it is another code instead.
    """

    def __init__(self, value: float, negated: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.negated = float(value), bool(negated)
        # Call index → the quantizer of the input.
        self._sources = Links()

    def link(self, inputs: Any, call_index: int) -> None:
        self._sources.set(call_index, upstream_quantizer(inputs))

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, call_index: int = 0
    ) -> tf.Tensor:
        source: TensorQuantizer | None = self._sources.get(call_index)
        found = tf.equal(inputs, tf.cast(self.value, inputs.dtype))
        if source is not None:
            scale = source.active_scale()
            known = scale > 0
            safe = tf.where(known, scale, 1.0)
            codes = tf.round(tf.cast(inputs, tf.float32) / safe)
            found = tf.where(known, tf.equal(codes, tf.round(self.value / safe)), found)
        return tf.logical_not(found) if self.negated else found

    def compute_output_spec(
        self, inputs: keras.KerasTensor, training: bool | None = None, call_index: int = 0
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype="bool")

    def stripped(self) -> list[Callable]:
        compare = ops.not_equal if self.negated else ops.equal
        return [lambda x: compare(x, self.value)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value, "negated": self.negated}


def _lower_equals(call: LoweredCall, x: tf.Tensor) -> tf.Tensor | None:
    """EQUAL or NOT_EQUAL of int32 codes."""
    layer = call.operation
    return (tf.not_equal if layer.negated else tf.equal)(x, np.float32(layer.value))


register(
    Equals,
    spec=OperatorSpec(
        role=Role.SELECT,
        quantized=lambda layer: Equals.from_config(layer.get_config()),
        lower=_lower_equals,
    ),
)


def _with_constant(node: Node) -> np.ndarray | None:
    """The constant that a call compares a tensor of floats with; `None` for no such call."""
    constants = [a for a in node.args if not isinstance(a, Value)]
    if len(node.inputs) != 1 or not node.inputs[0].is_float or len(constants) != 1 or node.kwargs:
        return None
    if isinstance(constants[0], (keras.Variable, keras.KerasTensor)):
        return None
    return np.asarray(constants[0], np.float32)


def _equal(negated: bool) -> Callable[[Builder, Node], Value | None]:
    def rule(b: Builder, node: Node) -> Value | None:
        """With the code of a number."""
        constant = _with_constant(node)
        if constant is None or constant.size != 1:
            return None
        return b.call(
            lambda n: Equals(float(constant.ravel()[0]), negated, name=n), "", *node.inputs
        )

    return rule


def _order(b: Builder, node: Node) -> Value | None:
    """Of two tensors: their difference with 0."""
    compare: Any
    if _with_constant(node) is not None:
        # LiteRT compares no float64, which an array of NumPy's makes of both sides.
        wide = [a for a in node.args if getattr(a, "dtype", None) == np.float64]
        if not wide:
            return None
        args = tuple(a.astype(np.float32) if a is wide[0] else a for a in node.args)
        compare = b.part(lambda n: type(node.operation)(name=n), "")
        return b.insert(compare, args, {}, [node.output.spec])[0]
    if len(node.inputs) != 2 or not all(v.is_float for v in node.inputs) or node.kwargs:
        return None
    if len({len(value.shape) for value in node.inputs}) != 1:
        return None
    difference = b.call(lambda n: layers.Subtract(name=n), "difference", *node.inputs)
    compare = b.part(lambda n: type(node.operation)(name=n), "")
    return b.insert(compare, (difference, 0.0), {}, [node.output.spec])[0]


def _compare_reason(node: Node) -> str | None:
    if _with_constant(node) is not None:
        return None
    return "it compares two tensors"


register(
    *(ops.greater, ops.greater_equal, ops.less, ops.less_equal),
    spec=OperatorSpec(role=Role.SELECT, decompose=_order, call_reason=_compare_reason),
)
for _function, _negated in ((ops.equal, False), (ops.not_equal, True)):
    register(
        _function,
        spec=OperatorSpec(
            role=Role.SELECT, decompose=_equal(_negated), call_reason=_compare_reason
        ),
    )

# --- choices ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfcompress")
class Choose(_Part):
    """x where a mask is true, else y. Called on `[x, y, mask]`, which are broadcast."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        x, y, mask = inputs
        return tf.where(tf.cast(mask, tf.bool), x, y)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        shapes = [tf.TensorShape(shape) for shape in input_shape]
        shape = tf.broadcast_static_shape(tf.broadcast_static_shape(*shapes[:2]), shapes[2])
        return tuple(shape.as_list())

    def stripped(self) -> list[Callable]:
        return [lambda inputs: ops.where(inputs[2], *inputs[:2])]


@keras.saving.register_keras_serializable(package="tfcompress")
class FillIf(_Part):
    """A constant where a mask is `filled`, else x. Called on `[x, mask]`.

    Args:
        value: The constant, a number or an array that broadcasts to x; rounded to the codes of x.
        filled: True or false.
    """

    channels_like = layers.Identity

    def __init__(self, value: Any, filled: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = np.asarray(value, np.float32).tolist()
        self.filled = bool(filled)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        x, mask = inputs
        both = (x, tf.constant(self.value, x.dtype))
        return tf.where(tf.cast(mask, tf.bool), *(both[::-1] if self.filled else both))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]

    def stripped(self) -> list[Callable]:
        def plain(inputs: list) -> Any:
            both = (inputs[0], np.asarray(self.value, np.float32))
            return ops.where(inputs[1], *(both[::-1] if self.filled else both))

        return [plain]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value, "filled": self.filled}


@keras.saving.register_keras_serializable(package="tfcompress")
class MaskValues(_Part):
    """One number where a mask is true, another where it is false.

    Args:
        true: The one.
        false: The other.
    """

    def __init__(self, true: float = 1.0, false: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.true, self.false = float(true), float(false)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        values = (tf.constant(v, self.compute_dtype) for v in (self.true, self.false))
        return tf.where(inputs, *values)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def stripped(self) -> list[Callable]:
        return [lambda mask: ops.where(mask, self.true, self.false)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "true": self.true, "false": self.false}


def _lower_values(call: LoweredCall, mask: tf.Tensor) -> tf.Tensor:
    """One GATHER of both numbers."""
    values = np.array([call.operation.false, call.operation.true], np.float32)
    return tf.gather(tf.constant(values), tf.cast(mask, tf.int32))


register(Choose, spec=OperatorSpec(role=Role.JOIN, takes_integers=True))
register(FillIf, spec=OperatorSpec(role=Role.RESAMPLE, takes_integers=True))
register(
    MaskValues,
    spec=OperatorSpec(role=Role.ELEMENTWISE, takes_integers=True, lower=_lower_values),
)


def choose(b: Builder, mask: Value, branches: list[Any], shape: tuple) -> Value | None:
    """`where` with a computed mask: what takes its place, `None` for nothing that runs in int8.

    Args:
        b: The builder.
        mask: The condition.
        branches: Two tensors, or numbers or arrays in place of one or both.
        shape: Of the result.
    """
    tensors = [v for v in branches if isinstance(v, Value)]
    if any(branch is None for branch in branches) or not all(v.is_float for v in tensors):
        return None
    if len(tensors) == 2:
        first, second = tensors
        return (
            _masked_by(b, first, second, mask, shape, False)
            or _masked_by(b, second, first, mask, shape, True)
            or b.call(lambda n: Choose(name=n), "", *tensors, mask)
        )
    constants = [np.asarray(v, np.float32) for v in branches if not isinstance(v, Value)]
    if not tensors:
        if any(c.size != 1 for c in constants) or mask.shape != shape:
            return None
        true, false = (float(c.ravel()[0]) for c in constants)
        return b.call(lambda n: MaskValues(true, false, name=n), "", mask)
    x, filled = tensors[0], not isinstance(branches[0], Value)
    own = x.shape[len(x.shape) - constants[0].ndim :]
    fits = all(n in (1, m) for n, m in zip(constants[0].shape, own, strict=True))
    if x.shape != shape or constants[0].ndim > len(x.shape) or not fits:
        return None
    value = constants[0] if constants[0].size > 1 else float(constants[0].ravel()[0])
    return masked_scores(b, x, value, mask, filled) or b.call(
        lambda n: FillIf(value, filled, name=n), "", with_room_for(b, x, value), mask
    )


def _masked_by(
    b: Builder, x: Value, fill: Value, mask: Value, shape: tuple, filled: bool
) -> Value | None:
    """Scores that are masked with a tensor of one number."""
    number = _number_everywhere(fill)
    return None if number is None or x.shape != shape else masked_scores(b, x, number, mask, filled)


def _number_everywhere(value: Value) -> float | None:
    """The number that a tensor holds everywhere, such as that of `full_like`; `None` for others."""
    node = value.node
    if node is None or len(node.inputs) != 1:
        return None
    operation, arguments = node.operation, node.args
    if isinstance(operation, ElementwiseFunction):
        operation, arguments = operation.original, operation.arguments
    kind = type(operation).__name__
    if kind == "FullLike" and len(arguments) == 2 and isinstance(arguments[1], (int, float)):
        return float(arguments[1])
    if kind in ("ZerosLike", "OnesLike"):
        return float(kind == "OnesLike")
    if type(operation).__name__ == "MultiplyConstant":
        found = _number_everywhere(node.inputs[0])
        return None if found is None else found * operation.value
    return None


# --- bins ---------------------------------------------------------------------------------------


def _lower_bins(call: LoweredCall, x: tf.Tensor) -> tf.Tensor:
    """How many of the boundaries a code reaches: comparisons of int32 codes, and their sum."""
    boundaries = np.asarray(call.operation.bin_boundaries, np.float32)
    reached = tf.greater_equal(tf.expand_dims(x, -1), boundaries)
    return tf.reduce_sum(tf.cast(reached, tf.int32), -1)


def _bins_reason(node: Node) -> str | None:
    if node.operation.output_mode != "int":
        return f"it gives {node.operation.output_mode} vectors; give it output_mode='int'"
    known = node.inputs[0].is_float and len(node.inputs[0].shape) <= 3
    known = known and len(node.operation.bin_boundaries or ()) > 0
    return None if known else "its boundaries are not known, or its input has more than three axes"


register(
    layers.Discretization,
    spec=OperatorSpec(role=Role.SELECT, lower=_lower_bins, call_reason=_bins_reason),
)
