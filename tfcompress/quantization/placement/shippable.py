"""Calls that no `.tflite` file can hold, in int8 or in float.

The converter has no form of some TensorFlow operators, and says so in its own terms after training.
Here the calls that stay in float are traced, and the operators that they run are looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfcompress.model.graph import Node, Value
from tfcompress.model.own_states import own_states
from tfcompress.quantization.operators.registry import UNKNOWN, keras_class, operator_of

# Operators that are no builtin of LiteRT and that the converter does not express by others; found
# by converting layers and keras.ops one by one.
_MISSING = frozenset(
    (
        *("AvgPool3D", "MaxPool3D"),
        *("AsString", "Bincount", "DenseBincount", "LookupTableFindV2", "RaggedBincount"),
        *("StringSplitV2", "StringToHashBucketFast", "StringToHashBucketStrong"),
        *("BitwiseAnd", "BitwiseOr", "Invert"),
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"),
        *("BesselI0", "BesselI0e", "BesselI1", "BesselI1e", "BesselJ0", "BesselJ1"),
        *("BesselK0", "BesselK0e", "BesselK1", "BesselK1e", "BesselY0", "BesselY1"),
        *("Complex", "Cumprod", "CumulativeLogsumexp", "Dawsn", "Digamma", "Erfinv"),
        *("Expint", "FresnelCos", "FresnelSin", "Igamma", "Igammac", "Lgamma", "Ndtri"),
        *("NextAfter", "Polygamma", "Spence", "Zeta"),
        *("Cross", "LogMatrixDeterminant", "MatrixSquareRoot", "BandedTriangularSolve"),
        *("IsotonicRegression", "LeftShift", "ListDiff", "NthElement"),
        *("AdjustContrastv2", "AdjustHue", "AdjustSaturation", "CropAndResize", "Dilation2D"),
        *("ExtractImagePatches", "MaxPoolWithArgmax"),
        *("Cholesky", "Lu", "MatrixDeterminant", "MatrixInverse", "MatrixSolve"),
        *("MatrixTriangularSolve", "Qr", "SelfAdjointEigV2", "Svd"),
        *("HSVToRGB", "ImageProjectiveTransformV3", "RGBToHSV", "ResizeArea", "ResizeBicubic"),
        "ScaleAndTranslate",
    )
)

# Random numbers, whatever they depend on.
_RANDOM = (
    "StatelessRandom",
    "StatelessTruncated",
    "StatelessParameterized",
    "StatelessMultinomial",
)

# Operators that LiteRT has for operands of one shape alone.
_OF_ONE_SHAPE = frozenset(("Atan2",))


def check_states(operations: Iterable[Any]) -> None:
    """Refuses layers with a `tf.Variable` that Keras neither copies nor saves.

    Args:
        operations: Of the graph.
    """
    for operation in operations:
        # A copy of a TFSMLayer reads its SavedModel again.
        is_read_again = isinstance(operation, keras.layers.TFSMLayer)
        is_layer = isinstance(operation, keras.layers.Layer) and not is_read_again
        states = own_states([operation]) if is_layer else {}
        if states:
            raise ValueError(
                "Expected layers whose variables are those of Keras, made by self.add_weight(), "
                f"also with trainable=False. Received: {operation.name!r} "
                f"({keras_class(operation).__name__}) with a tf.Variable in "
                f"{', '.join(map(repr, states))}, which neither a copy of the model nor a .keras "
                "file has."
            )


def check_shippable(nodes: Iterable[Node]) -> None:
    """Raises `ValueError` that names every call of which LiteRT has no form, and why.

    Args:
        nodes: The calls that stay in float.
    """
    found = {}
    for node in nodes:
        missing = missing_operators(node)
        if missing:
            kind = keras_class(node.operation).__name__
            found[node.name] = f"{node.name} ({kind}: no LiteRT operator for {', '.join(missing)})"
    if found:
        raise ValueError(
            "Expected layers that a .tflite file can hold, in int8 or in float. Received: "
            f"{'; '.join(found.values())}. Replace them, or end the model before them and compute "
            "them in the app; allow_float=True does not help here."
        )


def missing_operators(node: Node) -> list[str]:
    """The TensorFlow operators of a call that the converter has no form of."""
    spec = operator_of(node.operation)
    known = None if spec.missing is None else spec.missing(node.operation)
    if known is not None:
        return [known]
    if spec is not UNKNOWN and spec.lower is None and spec.decompose is None:
        # Known operators without a form of their own are in every file as Keras computes them.
        return []
    function = _traced(node)
    if function is None:
        return []
    graph, count = function.graph, len(node.inputs)
    # What does not depend on the inputs becomes a constant.
    depends = {tensor.op.name for tensor in graph.inputs[:count]}
    missing: dict[str, None] = {}
    for operation in graph.get_operations():
        if operation.type.startswith(_RANDOM):
            missing["random numbers"] = None
        if any(tensor.op.name in depends for tensor in operation.inputs):
            depends.add(operation.name)
            if operation.type in _MISSING:
                missing[operation.type] = None
            shapes = {tuple(tensor.shape) for tensor in operation.inputs}
            if operation.type in _OF_ONE_SHAPE and len(shapes) > 1:
                missing[f"{operation.type} of two shapes"] = None
    for inner in graph.as_graph_def().library.function:
        missing.update({n.op: None for n in inner.node_def if n.op in _MISSING})
        if any(n.op.startswith(_RANDOM) for n in inner.node_def):
            missing["random numbers"] = None
    return list(missing)


def _traced(node: Node) -> Any:
    """The call with batch 1 as a concrete function; `None` where it cannot be traced by itself."""
    values = node.inputs
    specs = [tf.TensorSpec((1, *v.shape[1:]), v.spec.dtype) for v in values]

    def call(*tensors: tf.Tensor) -> Any:
        position = iter(tensors)
        args, kwargs = tree.map_structure(
            lambda leaf: next(position) if isinstance(leaf, Value) else leaf,
            (node.args, node.kwargs),
        )
        # States, losses and seeds of the layer stay as they are.
        with keras.StatelessScope(collect_losses=True):
            return node.operation(*args, **kwargs)

    try:
        return tf.function(call, autograph=False).get_concrete_function(*specs)
    except Exception:
        # Unknown sizes, for example. The export then says what the converter does.
        return None
