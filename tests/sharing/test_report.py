"""What the report of a clustered model names."""

import keras
import numpy as np
from keras import layers

from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.model.strip import strip
from tfcompress.quantization.quantize import quantize
from tfcompress.sharing import cluster, clustering_report


def test_choosing_layers_and_naming_what_is_left_alone():
    class Own(layers.Dense):
        pass

    inputs = keras.Input((6, 4))
    x = layers.SeparableConv1D(5, 3, name="separable")(inputs)
    x = layers.Bidirectional(layers.LSTM(3), name="both")(x)
    x = layers.Dense(9, name="wide")(x)
    x = Own(9, name="own")(x)
    model = keras.Model(inputs, layers.Dense(2, name="narrow")(x))
    clustered = cluster(model, {"wide": 4, layers.SeparableConv1D: 3, "narrow": None})
    report = clustering_report(clustered)
    assert set(report.kernels) == {
        "wide",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
    }
    assert [k[1] for k in report.kernels.values()] == [3, 3, 4]
    assert {"narrow", "own"} < set(report.left_alone)
    assert "Own" in report.left_alone["own"]
    assert len(report.left_alone) == 6
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(clustered(x), strip(clustered)(x), atol=1e-6)


def test_every_layer_with_matrices_is_in_one_of_the_lists():
    class Own(layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 8), name="matrix")

        def call(self, x):
            return x @ self.matrix

        def get_config(self):
            return super().get_config()

    inputs = keras.Input((2, 6, 6, 2))
    x = layers.ConvLSTM2D(2, 3, name="conv_lstm")(inputs)
    x = layers.LayerNormalization(axis=[1, 2], name="norm")(x)
    x = layers.Reshape((4, 8))(x)
    x = Own(name="own")(x)
    x = layers.RNN(layers.GRUCell(3), name="rnn")(x)
    outputs = layers.Dense(9, name="out")(x)
    model = cluster(keras.Model(inputs, outputs), 4)
    report = clustering_report(model)
    assert set(report.kernels) == {"out"}
    assert set(report.left_alone) == {"conv_lstm", "own", "rnn"}
    assert "Own" in report.left_alone["own"]
    assert "rnn" in str(report)


def test_states_of_quantizers_and_teachers_are_no_kernels():
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, layers.Dense(3, name="out")(inputs))
    student = quantize(cluster(teacher, 4))
    distiller = Distiller(teacher, student, LogitsDistillation())
    for model in (student, distiller):
        report = clustering_report(model)
        assert len(report.kernels) == 1
        assert not report.left_alone


def test_a_depthwise_kernel_has_too_few_weights_to_a_channel():
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(x))
    report = clustering_report(cluster(model, 9, scope="channel"))
    assert set(report.kernels) == {"conv"}
    assert "to a codebook" in report.left_alone["depthwise"]
    assert set(clustering_report(cluster(model, 8, scope="channel")).kernels) == {
        "conv",
        "depthwise",
    }
