"""What rounds codes to codes of another range: equal where a code lies half way, too."""

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc

CODES = np.arange(-128, 128)


def test_codes_half_way_between_two_are_rounded_as_in_the_file(tmp_path):
    """120 steps of one side become 255 of the new range: every fourth code lies half way."""
    up, down = (keras.Input((4,), name=name) for name in ("up", "down"))
    slope = keras.initializers.Constant(0.3)
    outputs = {
        "relu": layers.ReLU()(up),
        "operation": ops.relu(up[:, 1:]),
        "relu6": layers.Activation("relu6")(up),
        "ceiling": layers.ReLU(1.0)(up),
        # The converter merges its identity with those of the ReLUs.
        "merged": ops.clip(up, -0.3, 1.5),
        "clip": ops.clip(down, -1.5, 0.3),
        "leaky": layers.LeakyReLU(0.25)(down),
        "prelu": layers.PReLU(slope, shared_axes=[1])(ops.reshape(down, (-1, 2, 2))),
    }
    # Zero points of 7 and -8: the largest values are 120 steps of 0.01.
    samples = np.stack([(CODES - 7) * 0.01, (CODES + 8) * 0.01]).astype(np.float32)
    inputs = [np.stack([np.roll(x, i) for i in range(4)], -1) for x in samples]
    quantized = tfc.quantize(keras.Model([up, down], outputs), calibration_data=inputs)
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=inputs)
    assert not [p for p in report.parity["serving_default"] if p.equal < 1.0]
    assert not report.float_tensors
    # Plain Keras layers again.
    plain = tfc.strip(loaded).predict(inputs, verbose=0)
    for name, expected in quantized.predict(inputs, verbose=0).items():
        np.testing.assert_allclose(plain[name], expected, atol=0.01)


def test_a_relu_that_is_also_called_behind_a_kernel(tmp_path, converter):
    """Behind the convolution it is fused; behind the pooling it is an operator of its own."""
    image, up = keras.Input((4, 4, 2), name="image"), keras.Input((4,), name="up")
    relu = layers.ReLU(name="relu")
    outputs = {"fused": relu(layers.Conv2D(3, 3)(image)), "alone": relu(up[:, 1:])}
    codes = ((CODES - 7) * 0.01).astype(np.float32)
    inputs = [
        np.random.default_rng(0).normal(size=(256, 4, 4, 2)).astype(np.float32),
        np.stack([np.roll(codes, i) for i in range(4)], -1),
    ]
    quantized = tfc.quantize(keras.Model([image, up], outputs), calibration_data=inputs)
    path = tmp_path / "m.tflite"
    assert tfc.export_tflite(quantized, path, verify_data=inputs).agreement == 1.0
    found = tfc.Runner(path).predict({"image": inputs[0], "up": inputs[1]})
    for name, wanted in quantized.predict(inputs, verbose=0).items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


def test_what_a_join_gives_is_rounded_again_for_the_next_join(tmp_path):
    """The second choice has the range of the input, the first one that of its operands."""
    inputs = keras.Input((16,), name="x")
    first = layers.Activation("tanh")(layers.Dense(16, name="dense")(inputs))
    wide = layers.Dense(16, name="wide")(inputs)
    chosen = ops.where(first > 0, first, 0.37 * wide)
    model = keras.Model(inputs, ops.where(chosen > 0, chosen, inputs))
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=x)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=x)
    assert not report.float_tensors
    assert report.agreement == 1.0


def test_joins_of_joins_have_the_range_of_what_they_hold(tmp_path):
    """Operands whose ranges the runtime prescribes, and free ones, in any order."""
    inputs = keras.Input((6,), name="x")
    concatenate = layers.concatenate
    joins = {
        "free_second": lambda s, t, x: concatenate([concatenate([s, x]), t]),
        "free_last": lambda s, t, x: concatenate([concatenate([s, t]), x]),
        "free_first": lambda s, t, x: concatenate([x, concatenate([t, s])]),
        "none_free": lambda s, t, x: concatenate([concatenate([s, t]), ops.softmax(x)]),
        "chosen": lambda s, t, x: concatenate([ops.where(x > 0, s, x), t]),
        "larger": lambda s, t, x: ops.maximum(ops.maximum(s, x), t),
        "moved": lambda s, t, x: concatenate([concatenate([s, x])[:, ::-1], t]),
    }
    outputs = {}
    for i, (name, join) in enumerate(joins.items()):
        x = layers.Dense(6, kernel_initializer=keras.initializers.RandomNormal(0, 0.5 + i / 5))(
            inputs
        )
        outputs[name] = join(ops.sigmoid(x), ops.tanh(x), x)
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), calibration_data=x)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=x)
    assert not report.float_tensors
    assert {p.output: p.equal for p in report.parity["serving_default"]} == dict.fromkeys(joins, 1)
