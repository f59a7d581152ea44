"""Decomposition: operations with a rounding inside become several, each rounded once.

LiteRT rounds to codes after every arithmetic step. An operation of several steps (a separable
convolution, a hard_silu, an average of three tensors) is therefore taken apart before training,
into the form that XNNPACK runs fastest, and what trains is what ships.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from tfcompress.model.compressed import compressed_class, is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.quantization.operators.parts import (
    AddConstant,
    BorderCorrection,
    MultiplyConstant,
    NegativePart,
    NegativeSlope,
    ZeroPaddedAverage,
    is_uniform_pool,
)
from tfcompress.quantization.operators.roles import activation_name, activation_of, is_op, role

#: `keras.ops` operations on two tensors that have a layer, by their class names.
_ARITHMETIC = {"Add": layers.Add, "Subtract": layers.Subtract, "Multiply": layers.Multiply}


@dataclasses.dataclass
class Decomposition:
    """What was taken apart.

    Attributes:
        parts: Name of the original → names of its parts.
        assignments: `(variable of the original, part, variable name)` to carry over.
        replaced: Original → the layer of the same weights and name that takes its place.
    """

    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    assignments: list[tuple[keras.Variable, Any, str]] = dataclasses.field(default_factory=list)
    replaced: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def record(self, name: str, part: str) -> None:
        """Notes a part of `name`, or of what `name` is itself a part of."""
        owners = [o for o, parts in self.parts.items() if name in parts]
        parts = self.parts.setdefault(owners[0] if owners else name, [])
        if part not in parts:
            parts.append(part)


class _Builder:
    """Inserts the parts of one original before its node; a shared original shares its parts."""

    def __init__(self, graph: Graph, result: Decomposition, made: dict):
        self.graph, self.result, self.made = graph, result, made

    def start(self, node: Node) -> None:
        self.node = node

    def call(
        self, make: Callable[[str], Any], suffix: str, *inputs: Value, variant: str = ""
    ) -> Value:
        """Calls the part that `make(name)` creates on `inputs` (a list if there are several).

        Args:
            make: Creates the part.
            suffix: What its name adds to that of the original.
            *inputs: What it is called on.
            variant: What it depends on beside the original, where calls of a shared one differ.
        """
        origin = self.node.operation
        key = (id(origin), suffix, variant)
        if key not in self.made:
            name = f"{origin.name}_{suffix}" if suffix else origin.name
            if any(k[:2] == key[:2] for k in self.made):
                name = f"{name}_{variant}"
            part = make(name)
            self.made[key] = part
            self.result.record(origin.name, part.name)
        argument = inputs[0] if len(inputs) == 1 else list(inputs)
        spec = self.made[key].compute_output_spec(
            inputs[0].spec if len(inputs) == 1 else [v.spec for v in inputs]
        )
        return self.graph.insert_call(self.node, self.made[key], (argument,), spec)

    def finish(self, value: Value) -> None:
        """Lets everything that read the original read `value`."""
        old = self.node.output
        for reader in self.graph.consumers(old):
            reader.replace_input(old, value)
        self.graph.outputs = keras.tree.map_structure(
            lambda v: value if v is old else v, self.graph.outputs
        )
        self.graph.nodes.remove(self.node)


def decompose(graph: Graph, skip: Callable[[Node], bool] = lambda node: False) -> Decomposition:
    """Takes apart, in place, every operation of `graph` that has a rounding inside.

    Args:
        graph: The graph.
        skip: Tells which calls stay whole (layers left in float).

    Returns:
        What was done, for the plan and for carrying the weights over.
    """
    result = Decomposition()
    builder = _Builder(graph, result, {})
    for node in list(graph.nodes):
        if not skip(node):
            _split_kernel_activation(builder, node)
    for node in list(graph.nodes):
        rule = None if skip(node) else _rule(node)
        if rule is not None:
            builder.start(node)
            builder.finish(rule(builder, node))
    return result


def _split_kernel_activation(builder: _Builder, node: Node) -> None:
    """conv(activation=f) → conv, f, unless f is a ReLU, which fuses."""
    layer = node.operation
    if not isinstance(layer, keras.Layer) or compressed_class(layer) is None:
        return
    activation = activation_name(getattr(layer, "activation", None))
    if isinstance(layer, (layers.LSTM, layers.GRU, layers.SimpleRNN)):
        return
    if activation in ("linear", "relu", "relu6") or role(layer) is None:
        if not isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
            return
        if activation == "linear":
            return
    if layer not in builder.result.replaced:
        config = {**layer.get_config(), "activation": "linear"}
        builder.result.replaced[layer] = type(layer).from_config(config)
        builder.made[id(layer), "activation"] = layers.Activation(
            layer.activation, name=f"{layer.name}_activation", dtype=layer.dtype_policy
        )
        for part in (layer.name, f"{layer.name}_activation"):
            builder.result.record(layer.name, part)
    builder.graph.insert_after(node.output, builder.made[id(layer), "activation"])


def _rule(node: Node) -> Callable[[_Builder, Node], Value] | None:
    operation = node.operation
    by_class = {
        layers.SeparableConv1D: _separable,
        layers.SeparableConv2D: _separable,
        layers.PReLU: _prelu,
        layers.Average: _average,
    }
    if is_compressed(operation):
        # Its parts would need their own share of its masks and codebooks.
        return None
    if type(operation) in by_class:
        return by_class[type(operation)]
    if type(operation) in (layers.AveragePooling1D, layers.AveragePooling2D):
        return None if is_uniform_pool(*_pooling(node), operation.padding) else _average_pool
    if type(operation) in (layers.Add, layers.Multiply, layers.Maximum, layers.Minimum):
        return _chain if len(node.inputs) > 2 else None
    if is_op(operation, "TrueDivide", "Divide") and _scalar(node):
        return lambda b, n: b.call(_times(1.0 / _scalar(n)), "", n.inputs[0])
    if is_op(operation, *_ARITHMETIC) and _takes_two_of_a_rank(node):
        cls = _ARITHMETIC[type(operation).__name__]
        return lambda b, n: b.call(lambda name: cls(name=name), "", *n.inputs)
    if is_op(operation, "Maximum") and _scalar(node) == 0:
        return lambda b, n: b.call(lambda name: layers.ReLU(name=name), "", n.inputs[0])
    if activation_of(operation) == "leaky_relu" and 0 < _slope(operation) < 1:
        return _leaky_relu
    return {
        "silu": _silu,
        "hard_sigmoid": _hard_sigmoid,
        "hard_silu": _hard_silu,
    }.get(activation_of(operation))


def _scalar(node: Node) -> float | None:
    """The number of `f(tensor, number)`; `None` for anything else."""
    is_first = node.args and isinstance(node.args[0], Value)
    if len(node.args) == 2 and is_first and isinstance(node.args[1], (int, float)):
        return float(node.args[1])
    return None


def _takes_two_of_a_rank(node: Node) -> bool:
    """Whether `f(tensor, tensor)` broadcasts as Keras' merge layers do."""
    return len(node.inputs) == 2 and len({len(value.shape) for value in node.inputs}) == 1


def _plus(value):
    return lambda name: AddConstant(value, name=name)


def _times(value):
    return lambda name: MultiplyConstant(value, name=name)


def _silu(b: _Builder, node: Node) -> Value:
    x = node.inputs[0]
    gate = b.call(lambda n: layers.Activation("sigmoid", name=n), "sigmoid", x)
    return b.call(lambda n: layers.Multiply(name=n), "", x, gate)


def _shifted_relu6(b: _Builder, x: Value) -> Value:
    shifted = b.call(_plus(3.0), "shift", x)
    return b.call(lambda n: layers.ReLU(6.0, name=n), "relu6", shifted)


def _hard_sigmoid(b: _Builder, node: Node) -> Value:
    return b.call(_times(1 / 6), "", _shifted_relu6(b, node.inputs[0]))


def _hard_silu(b: _Builder, node: Node) -> Value:
    """(x / 6) · relu6(x + 3): the converter would fuse x · relu6(x + 3) / 6 into HARD_SWISH."""
    gate = _shifted_relu6(b, node.inputs[0])
    sixth = b.call(_times(1 / 6), "sixth", node.inputs[0])
    return b.call(lambda n: layers.Multiply(name=n), "", sixth, gate)


def _slope(operation: Any) -> float:
    """The slope of a leaky ReLU; that of the bare function is Keras' default."""
    return float(getattr(operation, "negative_slope", 0.2))


def _leaky_relu(b: _Builder, node: Node) -> Value:
    """x + (1 − slope) · max(−x, 0): XNNPACK's LEAKY_RELU multiplies with few bits."""
    x, slope = node.inputs[0], _slope(node.operation)
    negative = b.call(lambda n: NegativePart(1 - slope, name=n), "negative", x)
    return b.call(lambda n: layers.Add(name=n), "", x, negative)


def _prelu(b: _Builder, node: Node) -> Value:
    layer, x = node.operation, node.inputs[0]
    positive = b.call(lambda n: layers.ReLU(name=n), "positive", x)
    negative = b.call(lambda n: NegativePart(name=n), "negative", x)
    slope = b.call(lambda n: NegativeSlope.from_config(layer.get_config()), "", negative)
    b.result.assignments.append((layer.alpha, slope.node.operation, "alpha"))
    return b.call(lambda n: layers.Add(name=n), "sum", positive, slope)


def _pooling(node: Node) -> tuple[tuple, tuple, tuple]:
    """`(image size, window, strides)`, those of a sequence as (1, steps)."""
    layer, shape = node.operation, node.inputs[0].shape
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    if len(window) == 1:
        return (1, shape[1]), (1, *window), (1, *strides)
    return tuple(shape[1:3]), window, strides


def _average_pool(b: _Builder, node: Node) -> Value:
    """At the border of a "same"-padded image Keras divides by fewer cells: a second step."""
    image, window, strides = _pooling(node)
    mean = b.call(lambda n: ZeroPaddedAverage(window, strides, name=n), "zeros", node.inputs[0])
    return b.call(
        lambda n: BorderCorrection(image, window, strides, name=n),
        "",
        mean,
        variant="x".join(map(str, image)),
    )


def _average(b: _Builder, node: Node) -> Value:
    total = node.inputs[0]
    for i, value in enumerate(node.inputs[1:], 1):
        total = b.call(lambda n: layers.Add(name=n), f"sum{i}", total, value)
    count = len(node.inputs)
    return b.call(_times(1 / count), "", total, variant=str(count))


def _chain(b: _Builder, node: Node) -> Value:
    """f([a, b, c]) → f([f([a, b]), c]): LiteRT's operators take two tensors."""
    cls, total = type(node.operation), node.inputs[0]
    for i, value in enumerate(node.inputs[1:-1], 1):
        total = b.call(lambda n: cls(name=n), f"part{i}", total, value)
    return b.call(lambda n: cls(name=n), "", total, node.inputs[-1])


def _separable(b: _Builder, node: Node) -> Value:
    layer = node.operation
    one_d = isinstance(layer, layers.SeparableConv1D)
    depthwise_class = layers.DepthwiseConv1D if one_d else layers.DepthwiseConv2D
    pointwise_class = layers.Conv1D if one_d else layers.Conv2D
    config = layer.get_config()

    def depthwise(name):
        keys = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")
        return depthwise_class(
            depth_multiplier=layer.depth_multiplier,
            use_bias=False,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            name=name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
            **{key: config[key] for key in keys},
        )

    def pointwise(name):
        return pointwise_class(
            layer.filters,
            1,
            use_bias=layer.use_bias,
            data_format=layer.data_format,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer,
            name=name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )

    middle = b.call(depthwise, "depthwise", node.inputs[0])
    result = b.call(pointwise, "", middle)
    targets = (middle.node.operation, result.node.operation)
    if layer.built:
        b.result.assignments.append((layer.depthwise_kernel, targets[0], "kernel"))
        b.result.assignments.append((layer.pointwise_kernel, targets[1], "kernel"))
        if layer.use_bias:
            b.result.assignments.append((layer.bias, targets[1], "bias"))
    return result
