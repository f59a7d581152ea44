"""Products of a tensor and a weight in a custom layer, in every way that users write them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.model.graph import Graph
from tfcompress.quantization.operators.weight_products import weight_equation

BAND = (np.eye(6) + np.eye(6, k=1) / 2).astype(np.float32)

# Name → input ("rows" is (6, 8), "heads" is (6, 2, 4)), call, shapes of the weights.
CASES = {
    "by_head": ("rows", lambda x, w, b: ops.einsum("btd,dhk->bthk", x, w) + b, [(8, 2, 4), (2, 4)]),
    "ellipsis": ("rows", lambda x, w: tf.einsum("...d,dhk->...hk", x, w), [(8, 2, 4)]),
    "out": ("heads", lambda x, w, b: ops.einsum("bthk,hko->bto", x, w) + b, [(2, 4, 5), (5,)]),
    "swapped": ("rows", lambda x, w: ops.einsum("oi,bti->bto", w, x), [(5, 8)]),
    "left": ("rows", lambda x, w: ops.matmul(w, x), [(7, 6)]),
    "mixer": (
        "rows",
        lambda x, w, b: ops.relu(ops.einsum("btd,ts->bsd", x, w) + b[:, None]),
        [(6, 7), (7,)],
    ),
    "transposed": ("rows", lambda x, w: tf.matmul(x, w, transpose_b=True), [(5, 8)]),
    "tensordot": ("rows", lambda x, w: ops.tensordot(x, w, axes=1), [(8, 5)]),
    "tensordot_of_axes": ("rows", lambda x, w: tf.tensordot(x, w, [[2], [0]]), [(8, 2, 3)]),
    "adjacency": ("rows", lambda x: ops.matmul(BAND, x), []),
}


@keras.saving.register_keras_serializable("test_weight_products")
class Own(layers.Layer):
    def __init__(self, case, **kwargs):
        super().__init__(**kwargs)
        self.case = case

    def build(self, input_shape):
        shapes = CASES[self.case][2]
        self.own = [
            self.add_weight(name=f"w{i}", shape=shape, initializer=initializer)
            for i, (shape, initializer) in enumerate(
                zip(shapes, ["glorot_uniform", "random_normal"], strict=False)
            )
        ]

    def call(self, inputs):
        return CASES[self.case][1](inputs, *self.own)

    def get_config(self):
        return {**super().get_config(), "case": self.case}


def test_they_run_in_int8_as_they_were_trained(tmp_path):
    inputs = {
        "rows": keras.Input((6, 8), name="rows"),
        "heads": keras.Input((6, 2, 4), name="heads"),
    }
    outputs = {name: Own(name, name=name)(inputs[case[0]]) for name, case in CASES.items()}
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    data = {n: random.normal(size=(32, *x.shape[1:])).astype("f") for n, x in inputs.items()}
    expected = model.predict(data, verbose=0)
    quantized = tfc.quantize(model, calibration_data=data, bias_correction=False)
    assert not quantized.plan.float_layers
    for name, values in quantized.predict(data, verbose=0).items():
        assert np.abs(values - expected[name]).max() < 0.03 * np.ptp(expected[name]), name
    quantized.compile(keras.optimizers.SGD(1e-2), dict.fromkeys(outputs, "mse"))
    before = [v.numpy() for v in quantized.trainable_variables]
    quantized.fit(data, {n: 0 * y for n, y in expected.items()}, batch_size=16, verbose=0)
    after = quantized.trainable_variables
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))
    assert len(after) == len(model.trainable_variables)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=data)
    assert not report.float_tensors
    parities = {p.output: p for p in report.parity["serving_default"]}
    assert set(parities) == set(CASES)
    assert all(p.equal == 1.0 and p.distinct > 50 for p in parities.values())


@pytest.mark.parametrize(
    ("x", "weight", "call"),
    [
        ((3, 6, 8), (3, 8, 5), ops.matmul),  # A matrix for each sample.
        ((3, 8), (3, 4), lambda x, w: ops.matmul(ops.transpose(w), x)),  # It sums the batch.
        ((3, 6, 8), (8, 2), lambda x, w: ops.einsum("btd,dh->tbh", x, w)),
        ((3, 6, 8), (8, 2), lambda x, w: ops.einsum("btd,dh->bh", x, w)),
    ],
)
def test_no_equation(x, weight, call):
    inputs = keras.Input(batch_shape=x)
    model = keras.Model(inputs, call(inputs, np.ones(weight, np.float32)))
    (node,) = (n for n in Graph.from_model(model).nodes if len(n.args) == 2)
    is_first = len(node.inputs) and node.args[0] is not node.inputs[0]
    assert weight_equation(node, np.shape(node.args[not is_first]), is_first) is None
