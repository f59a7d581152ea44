"""Attention and recurrent layers under every technique: what it left is in the file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.parity.conftest import randomize

STEPS, WIDTH = 3, 8
#: Kernels of the parts that attention and recurrent layers become.
KERNELS = {
    *(f"heads_{name}" for name in ("query", "key", "value")),
    *("lstm_input", "lstm_recurrent", "gru_input", "gru_recurrent"),
}


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).normal(size=(96, STEPS, WIDTH)).astype(np.float32)


def transformed():
    """A block of attention, an LSTM and a GRU."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((STEPS, WIDTH), name="x")
    y = layers.LayerNormalization(name="norm")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="heads")(y, y)])
    x = layers.LSTM(8, return_sequences=True, name="lstm")(x)
    x = layers.GRU(8, name="gru")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
    randomize(model)
    return model


def a_step(model, sequences, **kwargs):
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(sequences[:8], np.ones((8, 5)), batch_size=8, verbose=0, **kwargs)
    return model


def exported(model, sequences, tmp_path):
    """The report, and its kernels by name."""
    report = tfc.export_tflite(model, tmp_path / "m.tflite", verify_data=sequences[:48])
    assert report.agreement >= 0.99
    assert max(p.largest for p in report.parity["serving_default"]) <= 1
    assert not report.float_tensors
    kernels = {row.name: row for row in report.layers}
    assert set(kernels) >= KERNELS
    return report, kernels


def test_zeros_and_clusters_pass_into_the_parts(sequences, tmp_path):
    model = transformed()
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5, begin_step=0, frequency=1))
    a_step(model, sequences, callbacks=[pruning])
    # One scale for a kernel: with one per channel 8 values are more codes.
    scheme = tfc.Scheme(weights=tfc.WeightScheme(per_channel=False))
    quantized = tfc.quantize(model, scheme, calibration_data=sequences[:12])
    # The kernels inside an attention layer can be clustered once that is taken apart.
    shared = tfc.cluster(quantized, 8)
    a_step(shared, sequences)
    _, kernels = exported(shared, sequences, tmp_path)
    for name in KERNELS:
        row = kernels[name]
        assert row.pruned >= 0.5 * row.num_weights, name
        assert row.distinct <= 8, name


def test_copies_and_files_compute_the_same(sequences, tmp_path):
    quantized = tfc.quantize(transformed(), calibration_data=sequences[:12])
    # Eager: a trace of all steps takes longer.
    expected = np.asarray(quantized(sequences))
    clone = keras.models.clone_model(quantized)
    clone.set_weights(quantized.get_weights())
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for copy in (clone, loaded):
        np.testing.assert_array_equal(np.asarray(copy(sequences)), expected)
    exported(clone, sequences, tmp_path)
    plain = tfc.strip(quantized)
    assert not [la for la in plain.layers if type(la).__module__.startswith("tfcompress")]
    error = np.abs(np.asarray(plain(sequences)) - expected)
    assert error.mean() < 0.1 * np.abs(expected).max()


def test_weights_of_four_bits(sequences, tmp_path):
    scheme = tfc.Scheme(weights=tfc.WeightScheme(num_bits=4))
    quantized = tfc.quantize(transformed(), scheme, calibration_data=sequences[:12])
    _, kernels = exported(quantized, sequences, tmp_path)
    assert {kernels[name].num_bits for name in KERNELS} == {4}
    assert max(kernels[name].distinct for name in KERNELS) <= 16
