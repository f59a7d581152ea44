"""The registry of operators: what LiteRT's int8 runtime does at each, one entry per operator.

LiteRT requantizes where an operator computes new values and nowhere else, so a quantizer is placed
exactly there. An entry (`OperatorSpec`) says all that the rest of the library needs to know of an
operator: its role, how it is decomposed, which layer takes its place in training, which form it
takes in the file, why it stays in float. The entries are in the files of this package, one file
per family, next to the layers and forms that they name; `catalog` imports all of them.

An operator is looked up by its layer class, by its `keras.ops` operation, or by the activation
function that it applies.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.graph import Node, Value

if TYPE_CHECKING:
    from tfcompress.quantization.operators.builder import Builder
    from tfcompress.quantization.operators.forms import LoweredCall


class Role(enum.Enum):
    """What the int8 runtime does at an operator.

    Attributes:
        KERNEL: Convolution or dense: int32 sum, bias, fused activation, then one rounding.
        PRODUCT: Matrix product of two tensors: int32 sum, then one rounding.
        AFFINE: A multiplier and an offset per channel; runs as a 1×1 depthwise convolution.
        ARITHMETIC: Element by element on two tensors, or on a tensor and a scalar.
        AVERAGE: Mean over positions.
        RELU: Fuses into a kernel, affine or arithmetic operator before it, else rounds itself.
        ELEMENTWISE: A function of each value, from codes to codes.
        FIXED: The same, with the output range that LiteRT prescribes.
        MOVE: Only moves codes: no rounding.
        RESAMPLE: Interpolates, or fills in constants, and rounds to the codes of its input.
        JOIN: Its inputs and its output share one range.
        SELECT: Compares codes and gives positions, as whole numbers, or the codes that it chose.
    """

    KERNEL = "kernel"
    PRODUCT = "product"
    AFFINE = "affine"
    ARITHMETIC = "arithmetic"
    AVERAGE = "average"
    RELU = "relu"
    ELEMENTWISE = "elementwise"
    FIXED = "fixed"
    MOVE = "move"
    RESAMPLE = "resample"
    JOIN = "join"
    SELECT = "select"

    @property
    def keeps_codes(self) -> bool:
        """Whether the output holds the codes of the (first) input's quantizer."""
        return self in (Role.MOVE, Role.RESAMPLE, Role.JOIN, Role.SELECT)

    @property
    def fuses_relu(self) -> bool:
        """Whether a following ReLU or ReLU6 shares the operator's one rounding."""
        return self in (Role.KERNEL, Role.AFFINE, Role.ARITHMETIC)


@dataclasses.dataclass(frozen=True)
class OperatorSpec:
    """What the int8 runtime does at one operator. Every field may be left out.

    Attributes:
        role: The role, or a function of the operation that returns it. Without a role the
            operator stays in float, unless it is decomposed.
        activation: Keras' name of the function that is applied to each value.
        function: For a layer that applies an activation function: returns that function of the
            layer, whose entry then describes the call. `None` where the layer's options make it
            another function.
        otherwise: The entry of such a layer where `function` gives `None`.
        fixed_range: Output range that LiteRT prescribes.
        fused_activations: For a layer with an `activation` argument: names of the functions that
            run inside the operator. Any other becomes an operation of its own behind it.
        folds_into_kernel: Whether it folds into a kernel operator just before it.
        decompose: `decompose(builder, node)` replaces one call by several operators with one
            rounding each and returns the result; `None` leaves the call whole.
        quantized: Makes the (unbuilt) layer that takes the place of the given one in training.
        constants: `constants(operation, call_index)`: the arrays that the form needs, read before
            a graph is traced.
        lower: `lower(call, x)`: the TensorFlow form of a call on its first argument, `None` for
            what Keras computes.
        takes_integers: Whether some of its inputs are indices or masks, which hold no codes.
        options: `options(operation)`: options of the LiteRT operator that TensorFlow's operators
            do not express, by their names in the file's schema.
        table: `table(operation, call_index)`: the 256 values that it gives, by the code of its
            input, and the function's name in `export.flatbuffer.lookup.KERNELS`, or "". The file
            then holds the codes of these values.
        outside: `outside(operation)`: the LiteRT operator of it that does not run under XNNPACK;
            `None` for none.
        missing: `missing(operation)`: the operator that LiteRT does not have, even in float; `None`
            for none.
        float_reason: Why it stays in float, or a function of the operation that returns the
            reason, `None` for none.
        call_reason: Why one call stays in float, by its node; `None` for no reason.
        int16: Whether what LiteRT computes on 16-bit activations is known, to the bit; or a
            function of the call.
    """

    role: Role | Callable[[Any], Role | None] | None = None
    activation: str | None = None
    function: Callable[[Any], Callable | None] | None = None
    otherwise: OperatorSpec | None = None
    fixed_range: tuple[float, float] | None = None
    fused_activations: tuple[str, ...] | None = None
    folds_into_kernel: bool = False
    decompose: Callable[[Builder, Node], Value | list[Value] | None] | None = None
    quantized: Callable[[keras.Layer], keras.Layer] | None = None
    constants: Callable[[Any, int], tuple[np.ndarray, ...]] | None = None
    lower: Callable[[LoweredCall, tf.Tensor], tf.Tensor | None] | None = None
    takes_integers: bool = False
    options: Callable[[Any], dict[str, Any]] | None = None
    table: Callable[[Any, int], tuple[np.ndarray, str]] | None = None
    outside: Callable[[Any], str | None] | None = None
    missing: Callable[[Any], str | None] | None = None
    float_reason: str | Callable[[Any], str | None] | None = None
    call_reason: Callable[[Node], str | None] | None = None
    int16: bool | Callable[[Node], bool] = False


#: The entry of what nobody registered.
UNKNOWN = OperatorSpec()

# Layer classes, and functions; `keras.ops` operations by the name of their class.
_BY_TYPE: dict[Any, OperatorSpec] = {}
_BY_OPERATION: dict[str, OperatorSpec] = {}


def register(*kinds: type | Callable, spec: OperatorSpec) -> None:
    """Enters operators.

    Args:
        *kinds: Layer classes, functions of `keras.ops`, activation functions. A subclass of a
            registered class may compute anything, so it is not covered.
        spec: What they are.
    """
    for kind in kinds:
        if is_keras_operation(kind):
            _BY_OPERATION[_operation_class_name(kind)] = spec
        else:
            _BY_TYPE[kind] = spec


def register_operation(name: str, spec: OperatorSpec) -> None:
    """Enters an operation that is no function of `keras.ops`, by the name of its class."""
    _BY_OPERATION[name] = spec


def registered() -> dict[str, OperatorSpec]:
    """Every entry by its public name: `"layers.Dense"`, `"ops.add"`, `"activations.tanh"`."""
    names = {_public_name(kind): spec for kind, spec in _BY_TYPE.items()}
    words = {name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in _BY_OPERATION}
    # `activations.relu`, which has an entry of that name.
    words.pop("ReLU", None)
    operations = {_operation_name(word): _BY_OPERATION[name] for name, word in words.items()}
    return {**names, **operations}


def is_keras_operation(kind: Any) -> bool:
    """Whether `kind` is a function of `keras.ops`."""
    name = getattr(kind, "__name__", "")
    modules = (keras.ops, keras.ops.nn, keras.ops.image)
    is_function = bool(name) and not isinstance(kind, type)
    return is_function and any(getattr(m, name, None) is kind for m in modules)


def operator_of(operation: Any) -> OperatorSpec:
    """The entry of a layer or `keras.ops` operation; `UNKNOWN` where there is none."""
    if isinstance(operation, keras.Layer):
        spec = _BY_TYPE.get(type(operation)) or _BY_TYPE.get(keras_class(operation), UNKNOWN)
    else:
        spec = _BY_OPERATION.get(type(operation).__name__, UNKNOWN)
    if spec.function is None:
        return spec
    function = spec.function(operation)
    return spec.otherwise or UNKNOWN if function is None else function_spec(function)


def function_spec(function: Callable | None) -> OperatorSpec:
    """The entry of an activation function; `UNKNOWN` where there is none."""
    try:
        found = _BY_TYPE.get(function)
    except TypeError:
        # An object that cannot be hashed is not registered.
        return UNKNOWN
    if found is None and function is not None and is_keras_operation(function):
        found = _BY_OPERATION.get(_operation_class_name(function))
    return found or UNKNOWN


def role(operation: Any) -> Role | None:
    """The role of a (decomposed) operation; `None` where LiteRT's int8 runtime has none."""
    if unsupported_options(operation) is not None:
        return None
    found = operator_of(operation).role
    return found if found is None or isinstance(found, Role) else found(operation)


def has_int16_form(node: Node) -> bool:
    """Whether a call runs on 16-bit activations as it trains."""
    found = operator_of(node.operation).int16
    return found if isinstance(found, bool) else found(node)


def keeps_codes(operation: Any) -> bool:
    """Whether the output holds the codes of the (first) input's quantizer."""
    found = role(operation)
    return found is not None and found.keeps_codes


def unsupported_options(operation: Any) -> str | None:
    """Why an operation stays in float by itself or by its options; `None` for no such reason."""
    is_layer = isinstance(operation, keras.Layer)
    if is_layer and getattr(operation, "data_format", "channels_last") == "channels_first":
        return "LiteRT's kernels are channels-last"
    reason = operator_of(operation).float_reason
    return reason if reason is None or isinstance(reason, str) else reason(operation)


def activation_name(function: Any) -> str | None:
    """Keras' name of an activation function; `None` for a function of the user's own."""
    if function is None:
        return "linear"
    name = getattr(function, "__name__", None)
    return name if name and getattr(keras.activations, name, None) is function else None


def activation_of(operation: Any) -> str | None:
    """The function that an operation applies to each value, by Keras' name; `None`: no such."""
    entry = _BY_TYPE.get(keras_class(operation), UNKNOWN)
    if entry.function is not None:
        function = entry.function(operation)
        return None if function is None else activation_name(function)
    return operator_of(operation).activation


def keras_class(operation: Any) -> type:
    """The class whose `call` an operation runs; a user's own subclass is a class of its own."""
    return getattr(operation, "keras_class", type(operation))


def _operation_class_name(function: Callable) -> str:
    # The classes of keras.ops are not public; each is named after its function.
    return "".join(word.capitalize() for word in function.__name__.split("_"))


def _operation_name(name: str) -> str:
    return f"ops.{name}" if hasattr(keras.ops, name) else f"ops.image.{name}"


def _public_name(kind: Any) -> str:
    name = kind.__name__
    for module in ("layers", "activations"):
        if getattr(getattr(keras, module), name, None) is kind:
            return f"{module}.{name}"
    return name
