"""`register_operator`: an entry of the operator registry for a user's own layer or function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.model.subclassed import keep_whole
from tfcompress.quantization.operators.elementwise import TABLE
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.tracing import call_of, traced


def register_operator(
    kind: type[keras.Layer] | Callable,
    *,
    decompose: Callable | None = None,
    weights: Mapping[str, str] | None = None,
    role: str | None = None,
    elementwise: bool = False,
    float_reason: str | None = None,
) -> Any:
    """Tells `quantize` what the int8 runtime does at a layer or function of your own.

    Without it a custom layer stays in float, and the plan names it. Register in the module that
    defines the layer, so that it is known wherever the layer is.

    There are four kinds of operators:

    *   One of several steps is decomposed. `decompose` composes Keras layers and `keras.ops` on
        symbolic tensors; each of them is then quantized like any other, so codes are rounded
        behind every step, in training and in the file. With neither argument given, the function
        itself, or the `call` of the layer, is taken for that: enough for an activation made of
        `keras.ops`, or a layer made of Keras layers.
    *   A function of each value by itself is `elementwise=True`: it becomes a table from the 256
        codes of its input to codes of its output. It may be composed of anything that TensorFlow
        computes, and has no weights. The table takes about 6 ns a value in the file, so a
        function of few operations on large tensors is faster decomposed.
    *   One that only moves values (reshapes, permutes, slices) is `role="move"`: no rounding.
    *   One that has to stay in float gives its `float_reason`, for the plan.

    ```python
    @keras.saving.register_keras_serializable("my_package")
    def gated_relu(x):
        return keras.ops.relu(x) * keras.ops.sigmoid(x)

    tfc.register_operator(gated_relu)       # as an `activation=` or in a `layers.Activation`
    ```

    Args:
        kind: A layer class (its subclasses are not covered) or an activation function.
        decompose: For a function `decompose(x)`; for a layer `decompose(layer, *inputs)`, called
            with the arguments of each call. It returns tensors of the shapes that the call gives.
            Regularizers and constraints are those of the layers that it makes.
        weights: `"part/variable"` → name of the layer's own variable. The part is a layer that
            `decompose` makes with that `name=`; the variable passes to it with its mask and
            codebook. Keras layers that the custom layer holds and that `decompose` calls keep
            their weights without it.
        role: `"move"`.
        elementwise: Each value of the output depends on the value in its place alone.
        float_reason: Why it stays in float, in words for the plan.

    Returns:
        `kind`.

    Raises:
        TypeError: `kind` is neither a layer class nor a function, or another argument is of the
            wrong type.
        ValueError: `kind` is Keras' own, or more than one of `decompose`, `role`, `elementwise`
            and `float_reason` are given. What `decompose` does wrong is raised by `plan` and
            `quantize`.
    """
    is_layer = isinstance(kind, type) and issubclass(kind, keras.Layer)
    if not is_layer and (isinstance(kind, type) or not callable(kind)):
        raise TypeError(f"Expected a layer class or a function. Received: {kind!r}.")
    if str(getattr(kind, "__module__", "")).startswith("keras."):
        raise ValueError(
            f"Expected a layer or function of your own. Received: {kind!r} of Keras, whose int8 "
            "form is LiteRT's. Register a subclass, or leave the layer in float (scheme None)."
        )
    if decompose is not None and not callable(decompose):
        raise TypeError(f"Expected a function as decompose. Received: {decompose!r}.")
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"Expected a mapping as weights. Received: {weights!r}.")
    if float_reason is not None and not isinstance(float_reason, str):
        raise TypeError(f"Expected a text as float_reason. Received: {float_reason!r}.")
    given: dict[str, Any] = {
        "decompose": decompose,
        "role": role,
        "elementwise": elementwise or None,
        "float_reason": float_reason,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"Expected one of decompose, role, elementwise and float_reason. Received: {given}."
        )
    if role not in (None, "move"):
        raise ValueError(
            f"Expected role='move'. Received: role={role!r}. What computes new values is composed "
            "of Keras layers and keras.ops in decompose."
        )
    if weights and (role or elementwise or float_reason):
        raise ValueError(f"Expected weights beside decompose. Received: weights={weights!r}.")
    if isinstance(kind, type):
        keep_whole(kind)
    if elementwise:
        register(kind, spec=_TABLE)
    else:
        register(kind, spec=_spec(kind, is_layer, decompose, weights, role, float_reason))
    return kind


def _weights_reason(operation: Any) -> str | None:
    return "it has weights, and is registered as a table" if operation.variables else None


_TABLE = dataclasses.replace(TABLE, float_reason=_weights_reason)


def _spec(
    kind: Any,
    is_layer: bool,
    decompose: Callable | None,
    weights: Mapping[str, str] | None,
    role: str | None,
    float_reason: str | None,
) -> OperatorSpec:
    if role is not None:
        return OperatorSpec(role=Role(role))
    if float_reason is not None:
        return OperatorSpec(float_reason=float_reason)
    function = decompose or (call_of(kind) if is_layer else kind)
    return OperatorSpec(decompose=traced(function, weights))
