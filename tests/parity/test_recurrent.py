"""Recurrent layers: the unrolled file computes what the quantized Keras model predicts."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.parity.conftest import randomize

STEPS, WIDTH = 3, 6


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).normal(size=(200, STEPS, WIDTH)).astype(np.float32)


def exported(model, samples, tmp_path):
    """The quantized model, the report of its export and the parity by output."""
    randomize(model)
    quantized = tfc.quantize(model, calibration_data=samples)
    assert not quantized.plan.float_layers
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=samples)
    assert not report.float_tensors
    parities = {p.output: p for p in report.parity["serving_default"]}
    wrong = [p for p in parities.values() if p.equal < 0.99 or p.largest > 1 or p.distinct < 16]
    assert not wrong
    return quantized, report


def recurrent(inputs):
    """Recurrent layers and their wrappers, by name."""
    lstm = layers.LSTM(WIDTH, return_sequences=True, return_state=True, name="encoder", dropout=0.1)
    y, h, c = lstm(inputs)
    return {
        "sequence": y,
        "carry": c,
        "backwards": layers.LSTM(5, go_backwards=True)(y),
        "from_states": layers.LSTM(WIDTH, name="decoder")(inputs, initial_state=[h, c]),
        "gru": layers.GRU(5, return_sequences=True)(inputs),
        "simple": layers.SimpleRNN(5, activation="relu")(inputs),
        "both_ways": layers.Bidirectional(
            layers.SimpleRNN(3, return_sequences=True), merge_mode="sum"
        )(inputs),
        "distributed": layers.TimeDistributed(layers.Conv1D(3, 2))(
            ops.reshape(inputs, (-1, STEPS, 3, 2))
        ),
    }


def test_recurrent_layers(sequences, tmp_path):
    inputs = keras.Input((STEPS, WIDTH), name="x")
    outputs = recurrent(inputs)
    model = keras.Model(inputs, outputs)
    quantized, report = exported(model, sequences, tmp_path)
    floats = model.predict(sequences[:32], verbose=0)
    found = quantized.predict(sequences[:32], verbose=0)
    for name, values in floats.items():
        # Steps amplify what is rounded: single values may be further off.
        assert np.abs(found[name] - values).mean() < 0.03 * np.abs(values).max(), name
    # All steps have one set of quantizers.
    names = [layer.name for layer in quantized.layers]
    assert [n for n in names if n.startswith("encoder_hidden")] == [
        "encoder_hidden",
        "encoder_hidden_quantizer",
    ]
    assert any(isinstance(layer, layers.SpatialDropout1D) for layer in quantized.layers)
    assert not [op for op in report.ops if op in ("WHILE", "DEQUANTIZE", "QUANTIZE")]


def test_a_cell_with_its_states_as_inputs_and_outputs_streams(sequences, tmp_path):
    x, h, c = (keras.Input((n,), name=name) for n, name in ((WIDTH, "x"), (5, "h"), (5, "c")))
    cell = layers.LSTMCell(5, name="cell")
    output, (new_h, new_c) = cell(x, [h, c])
    logits = layers.Dense(3, name="logits")(output)
    model = keras.Model([x, h, c], {"logits": logits, "new_h": new_h, "new_c": new_c})
    states = np.zeros((len(sequences), 5), np.float32)
    data = [[], [], []]
    for step in range(STEPS):
        given = [sequences[:, step], *(states if step else (states, states))]
        found = model.predict(given, verbose=0)
        states = [found["new_h"], found["new_c"]]
        for stored, array in zip(data, given, strict=True):
            stored.append(array)
    data = [np.concatenate(arrays) for arrays in data]
    quantized = tfc.quantize(model, calibration_data=data)
    assert not quantized.plan.float_layers
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=data)
    assert report.agreement == 1.0
    runner = tfc.Runner(tmp_path / "m.tflite")
    # The codes of a state that comes out are those that go in at the next step.
    for name in ("h", "c"):
        given, result = runner.inputs[name], runner.outputs[f"new_{name}"]
        assert (given.scale, given.zero_point) == (result.scale, result.zero_point)


def test_dropout_of_a_state_is_the_same_at_every_step(sequences):
    inputs = keras.Input((STEPS, WIDTH), name="x")
    model = keras.Model(inputs, layers.SimpleRNN(64, recurrent_dropout=0.5, name="rnn")(inputs))
    quantized = tfc.quantize(model, calibration_data=sequences[:32])
    part = quantized.get_layer("rnn_recurrent_dropout")
    ones = np.ones((2, 64), np.float32)
    first = part(ones, training=True, first=True)
    again = part(ones, training=True)
    assert np.array_equal(first, again)
    assert set(np.unique(first)) == {0.0, 2.0}
    assert not np.array_equal(first, part(ones, training=True, first=True))
    quantized.compile("sgd", "mse", run_eagerly=True)
    before = quantized.get_layer("rnn_recurrent").kernel.numpy()
    quantized.fit(sequences[:32], np.ones((32, 64)), verbose=0)
    assert np.any(quantized.get_layer("rnn_recurrent").kernel.numpy() != before)


def test_what_cannot_be_unrolled_is_named():
    inputs = keras.Input((STEPS, WIDTH), batch_size=1)
    outputs = [
        layers.LSTM(3, stateful=True, name="stateful")(inputs),
        layers.GRU(3, reset_after=False, name="before")(inputs),
        layers.LSTM(3, name="long")(ops.tile(inputs, (1, 45, 1))),
    ]
    reasons = tfc.plan(keras.Model(inputs, outputs)).float_layers
    assert "an input and an output" in reasons["stateful"]
    assert "reset_after" in reasons["before"]
    assert "135 steps" in reasons["long"]
