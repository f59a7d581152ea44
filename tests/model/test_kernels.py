"""The table of kernels: every compressible variable, and its axes."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.model.kernels import (
    compressible_kernels,
    iterate_layers,
    kernel_specs,
    layer_kernels,
)

# Layer, shape of its input, kernel name → (size of the output axes, of the input axes).
CASES = [
    (layers.Dense(5), (2, 3), {"kernel": (5, 3)}),
    (layers.Conv1D(5, 3), (2, 8, 4), {"kernel": (5, 4)}),
    (layers.Conv2D(6, 3, groups=2), (2, 8, 8, 4), {"kernel": (6, 2)}),
    (layers.Conv3D(5, 2), (2, 4, 4, 4, 3), {"kernel": (5, 3)}),
    (layers.Conv1DTranspose(5, 3), (2, 8, 4), {"kernel": (5, 4)}),
    (layers.Conv2DTranspose(5, 3), (2, 8, 8, 4), {"kernel": (5, 4)}),
    (layers.Conv3DTranspose(5, 2), (2, 4, 4, 4, 3), {"kernel": (5, 3)}),
    (layers.DepthwiseConv1D(3, depth_multiplier=2), (2, 8, 4), {"kernel": (8, 1)}),
    (layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 8, 8, 4), {"kernel": (8, 1)}),
    (
        layers.SeparableConv2D(5, 3, depth_multiplier=2),
        (2, 8, 8, 4),
        {"depthwise_kernel": (8, 1), "pointwise_kernel": (5, 8)},
    ),
    (
        layers.SeparableConv1D(5, 3),
        (2, 8, 4),
        {"depthwise_kernel": (4, 1), "pointwise_kernel": (5, 4)},
    ),
    (layers.Embedding(7, 5), (2, 3), {"embeddings": (5, 1)}),
    (layers.LSTM(5), (2, 8, 4), {"kernel": (20, 4), "recurrent_kernel": (20, 5)}),
    (layers.GRU(5), (2, 8, 4), {"kernel": (15, 4), "recurrent_kernel": (15, 5)}),
    (layers.SimpleRNN(5), (2, 8, 4), {"kernel": (5, 4), "recurrent_kernel": (5, 5)}),
    (layers.EinsumDense("abc,cde->abde", (None, 5, 6)), (2, 3, 4), {"kernel": (30, 4)}),
    (layers.EinsumDense("abcd,cde->abe", (None, 6)), (2, 3, 4, 5), {"kernel": (6, 20)}),
]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"), CASES, ids=lambda v: getattr(v, "name", "")
)
def test_kernels_and_axes(layer, shape, expected):
    assert layer_kernels(layer) == ()
    layer.build(shape)
    found = {}
    for kernel in layer_kernels(layer):
        sizes = kernel.variable.shape
        found[kernel.spec.name] = (
            int(np.prod([sizes[a] for a in kernel.spec.output_axes])),
            int(np.prod([sizes[a] for a in kernel.spec.input_axes], dtype=int)),
        )
        assert any(kernel.variable is v for v in layer.weights)
    assert found == expected


def test_subclasses_count_and_other_layers_have_none():
    class Mine(layers.Conv2D):
        pass

    assert kernel_specs(Mine(2, 2)) == kernel_specs(layers.Conv2D(2, 2))
    assert kernel_specs(layers.BatchNormalization()) == ()
    assert layer_kernels(layers.ReLU()) == ()


def test_kernels_of_nested_shared_subclassed_and_wrapped_layers_are_found_once():
    class Block(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.Dense(4, name="in_list")]
            self.other = {"key": layers.Dense(4, name="in_dict")}

        def call(self, x):
            return self.other["key"](self.parts[0](x))

    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    x = Block()(shared(shared(inputs)))
    x = layers.Bidirectional(layers.LSTM(2, name="lstm"))(layers.Reshape((2, 2))(x))
    y = layers.Reshape((1, 4))(x)
    attention = layers.MultiHeadAttention(1, 2, name="attention")(y, y)
    model = keras.Model(inputs, attention)
    kernels = compressible_kernels(model)
    assert len({id(k.variable) for k in kernels}) == len(kernels) == 3 + 4 + 4
    names = [k.name for k in kernels]
    assert {"shared", "in_list", "in_dict"} <= set(names)
    assert sum("recurrent_kernel" in name for name in names) == 2
    assert len(list(iterate_layers(model))) == len({id(la) for la in iterate_layers(model)})


def test_a_model_may_answer_for_itself():
    class Pair(keras.Model):
        def __init__(self, teacher, student):
            super().__init__()
            self.teacher, self.student = teacher, student

        def compressible_kernels(self):
            return compressible_kernels(self.student)

    teacher, student = (
        keras.Sequential([keras.Input((2,)), layers.Dense(2, name=n)]) for n in ("big", "small")
    )
    assert [k.name for k in compressible_kernels(Pair(teacher, student))] == ["small"]
