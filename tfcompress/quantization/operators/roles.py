"""What the int8 runtime does at each operator: the table that decides where codes are rounded.

LiteRT requantizes where an operator computes new values and nowhere else, so a quantizer stands
exactly there. `role` says, for a layer or a `keras.ops` operation, which of these it is:

    KERNEL       convolution or dense: int32 sum, bias, fused activation, then one rounding
    AFFINE       a multiplier and an offset per channel; runs as a 1×1 depthwise convolution
    ARITHMETIC   element by element on two tensors (or a tensor and a scalar)
    AVERAGE      mean over positions
    RELU         fuses into any of the above, else rounds on its own
    ELEMENTWISE  a function of each value, from codes to codes
    FIXED        the same, with the output range that LiteRT prescribes
    MOVE         only moves codes: no rounding
    RESAMPLE     interpolates and rounds on the codes of its input
    JOIN         its inputs and its output share one range

An operation without a role stays in float, and `unsupported_options` may say why.
"""

from __future__ import annotations

import enum
from typing import Any

import keras
from keras import layers


class Role(enum.Enum):
    KERNEL = "kernel"
    AFFINE = "affine"
    ARITHMETIC = "arithmetic"
    AVERAGE = "average"
    RELU = "relu"
    ELEMENTWISE = "elementwise"
    FIXED = "fixed"
    MOVE = "move"
    RESAMPLE = "resample"
    JOIN = "join"


#: Roles into whose single rounding a following ReLU or ReLU6 fuses.
FUSES_RELU = (Role.KERNEL, Role.AFFINE, Role.ARITHMETIC)

#: Output ranges that LiteRT's int8 kernels prescribe.
FIXED_RANGES: dict[str, tuple[float, float]] = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}

_KERNELS = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_AFFINE = (layers.BatchNormalization, layers.Rescaling, layers.Normalization)
_AVERAGE = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
)
_MOVE = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Reshape,
    layers.Flatten,
    layers.Permute,
    layers.RepeatVector,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    # Augmentation inside a model is the identity in inference.
    layers.RandomFlip,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomZoom,
    layers.RandomContrast,
    layers.RandomBrightness,
)
_ARITHMETIC = (layers.Add, layers.Subtract, layers.Multiply)
_JOIN = (layers.Concatenate, layers.Maximum, layers.Minimum)
# keras.ops operations have no public classes; their class names are the functions' names.
_OPS = {
    Role.ARITHMETIC: ("Add", "Subtract", "Multiply"),
    Role.AVERAGE: ("Mean",),
    Role.JOIN: ("Concatenate", "Maximum", "Minimum"),
    Role.RELU: ("Relu", "Relu6"),
    Role.ELEMENTWISE: ("LeakyRelu", "Gelu"),
    Role.FIXED: ("Sigmoid", "Softmax", "Tanh"),
    Role.MOVE: (
        "Reshape",
        "Transpose",
        "Squeeze",
        "ExpandDims",
        "GetItem",
        "Split",
        "MaxPool",
        "Max",
        "Repeat",
        "Identity",
    ),
}
_OP_ROLES = {name: role for role, names in _OPS.items() for name in names}
_ACTIVATION_ROLES = {
    "linear": Role.MOVE,
    "relu": Role.RELU,
    "relu6": Role.RELU,
    "leaky_relu": Role.ELEMENTWISE,
    "gelu": Role.ELEMENTWISE,
    "sigmoid": Role.FIXED,
    "softmax": Role.FIXED,
    "tanh": Role.FIXED,
}


_LAYER_ROLES = {
    cls: role
    for role, classes in (
        (Role.KERNEL, _KERNELS),
        (Role.AFFINE, _AFFINE),
        (Role.AVERAGE, _AVERAGE),
        (Role.MOVE, _MOVE),
        (Role.ARITHMETIC, _ARITHMETIC),
        (Role.JOIN, _JOIN),
    )
    for cls in classes
}
_ACTIVATION_LAYERS = {
    layers.LeakyReLU: "leaky_relu",
    layers.Softmax: "softmax",
    layers.ELU: "elu",
}
_ACTIVATION_OPS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "LeakyRelu": "leaky_relu",
    "Gelu": "gelu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "Silu": "silu",
    "HardSilu": "hard_silu",
    "Softmax": "softmax",
    "Tanh": "tanh",
}


def is_op(operation: Any, *names: str) -> bool:
    """Whether `operation` is one of the `keras.ops` operations of these class names."""
    return not isinstance(operation, keras.Layer) and type(operation).__name__ in names


def activation_name(function: Any) -> str | None:
    """Keras' name of an activation function; `None` for a function of the user's own."""
    if function is None:
        return "linear"
    name = getattr(function, "__name__", None)
    return name if name and getattr(keras.activations, name, None) is function else None


def keras_class(operation: Any) -> type:
    """The class whose `call` an operation runs; a user's own subclass is a class of its own."""
    return getattr(operation, "keras_class", type(operation))


def activation_of(operation: Any) -> str | None:
    """The function that an operation applies to each value, by Keras' name; `None`: no such."""
    cls = keras_class(operation)
    if cls is layers.Activation:
        return activation_name(operation.activation)
    if cls is layers.ReLU:
        return _relu_name(operation)
    if cls in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[cls]
    if not isinstance(operation, keras.Layer):
        return _ACTIVATION_OPS.get(cls.__name__)
    return None


def _relu_name(layer: layers.ReLU) -> str | None:
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return None
    if layer.negative_slope:
        return "leaky_relu"
    return "relu6" if layer.max_value == 6 else "relu"


def role(operation: Any) -> Role | None:
    """The role of a (decomposed) operation; `None` where LiteRT's int8 runtime has none."""
    if unsupported_options(operation) is not None:
        return None
    cls = keras_class(operation)
    if cls is layers.UpSampling2D:
        return Role.MOVE if operation.interpolation == "nearest" else Role.RESAMPLE
    activation = activation_of(operation)
    if activation is not None:
        return _ACTIVATION_ROLES.get(activation)
    if not isinstance(operation, keras.Layer):
        return _OP_ROLES.get(cls.__name__)
    return _LAYER_ROLES.get(cls) or getattr(operation, "quantization_role", None)


def keeps_codes(operation: Any) -> bool:
    """Whether the output holds the codes of the (first) input's quantizer."""
    return role(operation) in (Role.MOVE, Role.RESAMPLE, Role.JOIN)


def unsupported_options(operation: Any) -> str | None:
    """What of a layer's options LiteRT's int8 kernels lack; `None` for nothing."""
    if isinstance(operation, keras.Layer):
        if getattr(operation, "data_format", "channels_last") == "channels_first":
            return "LiteRT's kernels are channels-last"
        if isinstance(operation, layers.BatchNormalization) and operation.renorm:
            return "batch renormalization has no counterpart in LiteRT"
        if isinstance(operation, layers.Normalization) and operation.invert:
            return "an inverted Normalization is not a multiplier and an offset of its input"
        if isinstance(operation, _AFFINE[::2]) and not _is_channel_axis(operation):
            return "its statistics are not along the last axis"
    return None


def _is_channel_axis(layer) -> bool:
    axis = layer.axis
    if isinstance(axis, (list, tuple)):
        axis = axis[0] if len(axis) == 1 else None
    if axis is None:
        # A Normalization with axis=None has one mean and one variance for everything.
        return isinstance(layer, layers.Normalization)
    shape = (layer.get_build_config() or {}).get("input_shape")
    return axis == -1 or (shape is not None and axis == len(shape) - 1)
