"""Small, real architectures that the recipes and benchmarks share.

All are functional models that end in logits. The image models take raw pixels in 0..255 and scale
them inside, so an app feeds bytes; `digits_cnn` takes 0..1, the scale of its data set.

| name         | meant for               | parameters | source                                   |
|--------------|-------------------------|------------|------------------------------------------|
| `lenet300`   | MNIST, 28x28x1          | 266,610    | LeNet-300-100, LeCun et al. 1998         |
| `lenet5`     | MNIST, 28x28x1          | 431,080    | LeNet-5 as the pruning papers count it   |
| `small_cnn`  | (Fashion-)MNIST         | 186,794    | three convolutions with batch norm       |
| `resnet8`    | CIFAR-10, 32x32x3       | 78,666     | MLPerf Tiny, image classification        |
| `ds_cnn`     | key words, 49x10x1      | 24,202     | MLPerf Tiny, after Zhang et al. 2017     |
| `digits_cnn` | digits, 8x8x1           | 10,074     | two convolutions with batch norm         |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
from keras import layers

from tfcompress.model import Graph, rebuild
from tfcompress.quantization.operators.batch_norm import quantized_batch_norm


def lenet300(inputs, num_classes: int):
    """Two hidden dense layers of 300 and 100."""
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    for units in (300, 100):
        x = layers.Dense(units, activation="relu")(x)
    return layers.Dense(num_classes, name="logits")(x)


def lenet5(inputs, num_classes: int):
    """Two 5x5 convolutions of 20 and 50 filters with pooling, and a dense layer of 500."""
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (20, 50):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 5, activation="relu")(x))
    x = layers.Dense(500, activation="relu")(layers.Flatten()(x))
    return layers.Dense(num_classes, name="logits")(x)


def small_cnn(inputs, num_classes: int):
    """Three 3x3 convolutions with batch norm and pooling, a dense layer, and dropout."""
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64, 96):
        x = layers.MaxPooling2D()(_conv_bn_relu(x, filters, 3))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return layers.Dense(num_classes, name="logits")(layers.Dropout(0.4)(x))


def resnet8(inputs, num_classes: int):
    """A stem and three residual blocks of 16, 32 and 64 filters, the last two strided."""
    # With biases before batch norm, as the reference has them.
    options = {"use_bias": True, "kernel_regularizer": keras.regularizers.L2(1e-4)}
    x = _conv_bn_relu(layers.Rescaling(1 / 127.5, offset=-1)(inputs), 16, 3, **options)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        branch = _conv_bn_relu(x, filters, 3, strides, **options)
        branch = _conv_bn(branch, filters, 3, **options)
        if strides > 1:
            x = _convolution(filters, 1, strides, **options)(x)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return layers.Dense(num_classes, name="logits")(layers.GlobalAveragePooling2D()(x))


def ds_cnn(inputs, num_classes: int):
    """A strided convolution, then four depthwise separable ones of 64 channels."""
    x = _conv_bn_relu(inputs, 64, (10, 4), 2)
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = _conv_bn_relu(x, 64, 1)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(num_classes, name="logits")(x)


def digits_cnn(inputs, num_classes: int):
    """Two 3x3 convolutions with batch norm, pooling and one dense layer."""
    x = _conv_bn_relu(inputs, 16, 3)
    x = layers.MaxPooling2D()(_conv_bn_relu(x, 32, 3))
    return layers.Dense(num_classes, name="logits")(layers.Flatten()(x))


#: Name → function from input tensor and number of classes to logits.
ARCHITECTURES: dict[str, Callable] = {
    function.__name__: function
    for function in (lenet300, lenet5, small_cnn, resnet8, ds_cnn, digits_cnn)
}

_SMALLEST_SIDE = {"lenet5": 16, "small_cnn": 8, "digits_cnn": 2}


def build(name: str, input_shape: Sequence[int], num_classes: int) -> keras.Model:
    """Builds one of the models with fresh weights.

    Args:
        name: A key of `ARCHITECTURES`.
        input_shape: Height, width and channels.
        num_classes: Number of logits, 2 or more.

    Returns:
        An uncompiled functional model with the input `"image"` and the output layer `"logits"`.

    Raises:
        ValueError: If the name is unknown or the shape or the number does not fit.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected one of {', '.join(ARCHITECTURES)}. Received: {name=}")
    shape = tuple(input_shape)
    side = _SMALLEST_SIDE.get(name, 1)
    if len(shape) != 3 or not all(isinstance(d, int) for d in shape) or min(shape[:2]) < side:
        raise ValueError(
            f"Expected input_shape as (height, width, channels) of at least {side}x{side} for "
            f"{name}. Received: {input_shape=}"
        )
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"Expected num_classes of 2 or more. Received: {num_classes=}")
    inputs = keras.Input(shape, name="image")
    return keras.Model(inputs, ARCHITECTURES[name](inputs, num_classes), name=name)


def _convolution(filters, size, strides, **options):
    return layers.Conv2D(
        filters, size, strides, padding="same", kernel_initializer="he_normal", **options
    )


def _conv_bn(x, filters, size, strides=1, use_bias=False, **options):
    x = _convolution(filters, size, strides, use_bias=use_bias, **options)(x)
    return layers.BatchNormalization()(x)


def _conv_bn_relu(x, filters, size, strides=1, **options):
    return layers.ReLU()(_conv_bn(x, filters, size, strides, **options))


def with_fused_batch_norm(model: keras.Model) -> keras.Model:
    """A copy that trains the same with TensorFlow's fused batch norm: a third less time a step."""
    graph = Graph.from_model(model)
    norms = [o for o in graph.operations() if isinstance(o, keras.layers.BatchNormalization)]
    return rebuild(graph, {norm: quantized_batch_norm(norm) for norm in norms})
