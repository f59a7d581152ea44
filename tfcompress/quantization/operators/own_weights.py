"""Weights of a user's own layer, as kernels and scales of the layers that LiteRT's operators are.

`ops.matmul(x, self.w) + self.b` is a Dense layer, `ops.conv(x, self.w, …)` a convolution,
`x * self.scale` a scale per channel. The layers found here take the variables over.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from tfcompress.model.batch_sizes import SampleConstant
from tfcompress.model.einsum_layer import SizedEinsumDense
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.merging import Untraceable, Weight
from tfcompress.quantization.operators.per_channel import is_per_channel, rescaling_of
from tfcompress.quantization.operators.tracing import Taken
from tfcompress.quantization.operators.trained_affine import TrainedAffine
from tfcompress.quantization.operators.trained_sum import AddWeight, fits
from tfcompress.quantization.operators.weight_products import weight_equation


@dataclasses.dataclass
class _Layer:
    """A layer to be made.

    Attributes:
        cls: Its class.
        arguments: Of its constructor, beside name, dtype and `trainable`.
        weights: Role ("kernel", "bias", "scale", "offset") → the variable.
        input: What it is called on.
        channels: Size of the last axis of its output.
        source: The variable whose values the kernel has in another order or shape.
    """

    cls: type[keras.Layer]
    arguments: dict[str, Any]
    weights: dict[str, keras.Variable]
    input: Value
    channels: int | None = None
    source: keras.Variable | None = None


def take_weights(graph: Graph, dtype_policy: Any) -> tuple[Taken, list[keras.Variable]]:
    """Replaces, in place, the calls that read weights by layers that have them.

    Args:
        graph: As `symbolic.follow` gives it.
        dtype_policy: Of the layers that are made.

    Returns:
        The layers with the variables that they take over, and the variables that a kernel holds
        in another order or shape: in place of each stands a variable of its values.

    Raises:
        Untraceable: A weight is used in a way that is no kernel, bias, scale or offset.
    """
    _check_owners(graph)
    planned: dict[Node, _Layer] = {}
    for node in list(graph.nodes):
        weights = [x for x in tree.flatten((node.args, node.kwargs)) if isinstance(x, Weight)]
        if not weights:
            continue
        found = _layer_of(node, weights)
        if found is None:
            kind = type(node.operation).__name__
            raise Untraceable(
                f"its weight {weights[0].variable.name!r} is an argument of {kind}, where it is "
                "no kernel of a dense or convolution layer and no scale or offset per channel"
            )
        before = found.input.node
        if before in planned and _merge(graph, planned[before], found):
            graph.replace(node, [found.input])
            continue
        planned[node] = found
    sources = [plan.source for plan in planned.values() if plan.source is not None]
    return dict(_make(graph, planned, dtype_policy)), sources


def layer_of_weight(node: Node, weight: Weight, kind: str) -> Callable[[str], keras.Layer] | None:
    """Makes, from a name, the layer of a call with one weight, which it holds; `None` for none.

    Args:
        node: The call.
        weight: The argument of it that is the weight.
        kind: Name of the operation's class.
    """
    rule = _RULES.get(kind)
    plan = None if rule is None else rule(node, weight)
    if plan is None:
        return None

    def make(name: str) -> keras.Layer:
        layer = plan.cls(**{**_arguments(plan), "name": name})
        layer.trainable = weight.variable.trainable
        layer.build(plan.input.shape)
        own = {v.name: v for v in layer.variables}
        for role, variable in plan.weights.items():
            own[role].assign(variable)
        return layer

    return make


def constants_per_channel(graph: Graph, dtype_policy: Any) -> None:
    """Makes sums and products with a constant per channel Rescaling layers, in place."""
    for node in list(graph.nodes):
        rescaling = rescaling_of(node)
        if rescaling is None:
            continue
        layer = layers.Rescaling(*rescaling, dtype=dtype_policy)
        new = graph.insert_before(node, layer, (node.inputs[0],), {}, [node.output.spec])
        new.path = node.path
        graph.replace(node, new.outputs)


def _check_owners(graph: Graph) -> None:
    """Every weight is read once, and by no layer that is called as a whole."""
    held = {id(v) for op in graph.operations() for v in getattr(op, "variables", ())}
    seen: set[int] = set()
    for node in graph.nodes:
        for leaf in tree.flatten((node.args, node.kwargs)):
            if isinstance(leaf, Weight):
                if id(leaf.variable) in held | seen:
                    raise Untraceable(f"its weight {leaf.variable.path!r} is read in two places")
                seen.add(id(leaf.variable))


def _layer_of(node: Node, weights: list[Weight]) -> _Layer | None:
    rule = _RULES.get(type(node.operation).__name__)
    if rule is None or len(weights) != 1 or len(node.inputs) != 1 or len(node.args) != 2:
        return None
    if not all(isinstance(a, (Value, Weight)) for a in node.args) or node.kwargs:
        return None
    return rule(node, weights[0])


def _kernel(
    cls: type[keras.Layer], arguments: dict[str, Any], node: Node, weight: Weight
) -> _Layer | None:
    if node.args[1] is not weight:
        return None
    channels, kernel = node.output.shape[-1], _in_shape(weight)
    source = None if kernel is weight.variable else weight.variable
    return _Layer(cls, arguments, {"kernel": kernel}, node.inputs[0], channels, source)


def _in_shape(weight: Weight) -> keras.Variable:
    """The variable, or one of its values in the order and shape in which they are read."""
    variable = weight.variable
    if weight.axes is None and weight.shape == tuple(variable.shape):
        return variable
    own = (variable.constraint, variable.regularizer)
    if own[0] is not None or not isinstance(own[1], (*_ELEMENTWISE, type(None))):
        raise Untraceable(
            f"its weight {variable.name!r}, which is read in another shape, has a constraint or "
            "regularizer of its own"
        )
    values = np.asarray(variable.value)
    values = values if weight.axes is None else np.transpose(values, weight.axes)
    result = keras.Variable(
        values.reshape(weight.shape), trainable=variable.trainable, name=variable.name
    )
    result.regularizer = variable.regularizer
    return result


# Regularizers that penalize each value by itself.
_ELEMENTWISE = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


def _dot(node: Node, weight: Weight) -> _Layer | None:
    if len(weight.shape) != 2 or len(node.inputs[0].shape) < 2:
        return None
    return _kernel(layers.Dense, {"units": weight.shape[1]}, node, weight)


def _product(node: Node, weight: Weight) -> _Layer | None:
    """A dense layer where the last axis meets a matrix, else an EinsumDense."""
    equation = weight_equation(node, tuple(weight.shape), node.args[0] is weight)
    if equation is None:
        return None
    given, kernel, output = re.split(",|->", equation)
    if len(kernel) == 2 and given[-1] == kernel[0] and output == given[:-1] + kernel[1]:
        cls: type[keras.Layer] = layers.Dense
        arguments: dict[str, Any] = {"units": weight.shape[1]}
    else:
        cls = SizedEinsumDense
        arguments = {"equation": equation, "output_shape": node.output.shape[1:]}
    variable = _in_shape(weight)
    channels = node.output.shape[-1] if output[-1] in kernel else None
    source = None if variable is weight.variable else weight.variable
    return _Layer(cls, arguments, {"kernel": variable}, node.inputs[0], channels, source)


def _conv_arguments(node: Node) -> dict[str, Any] | None:
    op = node.operation
    if (op.data_format or keras.config.image_data_format()) != "channels_last":
        return None
    return {"strides": op.strides, "padding": op.padding, "dilation_rate": op.dilation_rate}


def _conv(node: Node, weight: Weight) -> _Layer | None:
    arguments = _conv_arguments(node)
    if arguments is None or len(weight.shape) not in (3, 4):
        return None
    *size, channels, filters = weight.shape
    given = node.inputs[0].shape[-1]
    if given is None:
        return None
    cls = layers.Conv1D if len(size) == 1 else layers.Conv2D
    own = {"filters": filters, "kernel_size": tuple(size), "groups": given // channels}
    return _kernel(cls, {**arguments, **own}, node, weight)


def _depthwise(node: Node, weight: Weight) -> _Layer | None:
    arguments = _conv_arguments(node)
    if arguments is None or len(weight.shape) not in (3, 4):
        return None
    *size, _, multiplier = weight.shape
    cls = layers.DepthwiseConv1D if len(size) == 1 else layers.DepthwiseConv2D
    own = {"kernel_size": tuple(size), "depth_multiplier": multiplier}
    return _kernel(cls, {**arguments, **own}, node, weight)


def _conv_transpose(node: Node, weight: Weight) -> _Layer | None:
    arguments = _conv_arguments(node)
    if arguments is None or len(weight.shape) != 4:
        return None
    *size, filters, _ = weight.shape
    own = {"filters": filters, "kernel_size": tuple(size)}
    own["output_padding"] = node.operation.output_padding
    return _kernel(layers.Conv2DTranspose, {**arguments, **own}, node, weight)


def _affine(role: str) -> Callable[[Node, Weight], _Layer | None]:
    def rule(node: Node, weight: Weight) -> _Layer | None:
        if not is_per_channel(node, weight.shape):
            return None
        x = node.inputs[0]
        return _Layer(TrainedAffine, {}, {role: weight.variable}, x, x.shape[-1])

    return rule


def _sum(node: Node, weight: Weight) -> _Layer | None:
    """An offset per channel, or a value per position."""
    found = _affine("offset")(node, weight)
    x = node.inputs[0]
    if found is not None or len(weight.shape) not in (1, 2, 3, 4) or not x.is_float:
        return found
    if x.shape != node.output.shape or not fits(weight.shape, x.shape):
        return None
    addend = _in_shape(weight)
    source = None if addend is weight.variable else weight.variable
    return _Layer(AddWeight, {}, {"addend": addend}, x, source=source)


def _sample_constant(node: Node, weight: Weight) -> _Layer | None:
    """A class token."""
    value = _in_shape(weight)
    source = None if value is weight.variable else weight.variable
    return _Layer(SampleConstant, {}, {"value": value}, node.inputs[0], source=source)


_RULES: dict[str, Callable[[Node, Weight], _Layer | None]] = {
    "Matmul": _product,
    "Dot": _dot,
    "Einsum": _product,
    "Tensordot": _product,
    "Conv": _conv,
    "DepthwiseConv": _depthwise,
    "ConvTranspose": _conv_transpose,
    "Add": _sum,
    "Multiply": _affine("scale"),
    SampleConstant.__name__: _sample_constant,
}


def _merge(graph: Graph, before: _Layer, found: _Layer) -> bool:
    """Makes an offset the bias of the kernel, or the offset of the scale, just before it."""
    role = "bias" if "kernel" in before.weights else "offset"
    variable = found.weights.get("offset")
    if variable is None or before.cls in (AddWeight, SampleConstant) or role in before.weights:
        return False
    if graph.sole_consumer(found.input) is None:
        return False
    is_fitting = role == "offset" or tuple(variable.shape) == (before.channels,)
    if not is_fitting or any(v.trainable != variable.trainable for v in before.weights.values()):
        return False
    before.weights[role] = variable
    return True


def _make(graph: Graph, planned: dict[Node, _Layer], dtype_policy: Any) -> Any:
    """Puts the layers, built and with their weights, in place of the calls."""
    for node, plan in planned.items():
        layer = plan.cls(**_arguments(plan), dtype=dtype_policy)
        if not all(v.trainable for v in plan.weights.values()):
            layer.trainable = False
        # What it is called on may be the output of a layer that was made just now.
        x = node.inputs[0]
        layer.build(x.shape)
        own = {v.name: v for v in layer.variables}
        for role, variable in plan.weights.items():
            own[role].assign(variable)
        new = graph.insert_before(node, layer, (x,), {}, [node.output.spec])
        new.path = node.path
        graph.replace(node, new.outputs)
        yield layer, plan.weights


# Layers that take the shapes of their weights.
_OF_ONE_SHAPE = (TrainedAffine, AddWeight, SampleConstant)


def _arguments(plan: _Layer) -> dict[str, Any]:
    arguments = {**plan.arguments, "name": next(iter(plan.weights.values())).name}
    prefixes = {role: role for role in plan.weights}
    if issubclass(plan.cls, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        prefixes["kernel"] = "depthwise"
    for role, variable in plan.weights.items():
        arguments[f"{prefixes[role]}_regularizer"] = variable.regularizer
        arguments[f"{prefixes[role]}_constraint"] = variable.constraint
        if plan.cls in _OF_ONE_SHAPE:
            arguments[f"{role}_shape"] = tuple(variable.shape)
    if plan.cls is SizedEinsumDense:
        arguments["bias_axes"] = plan.arguments["equation"][-1] if "bias" in plan.weights else None
    elif plan.cls not in _OF_ONE_SHAPE:
        arguments["use_bias"] = "bias" in plan.weights
    return arguments
