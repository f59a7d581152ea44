"""Every quantizer in a model: trained, saved, cloned, pruned, exported to what was trained."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

WEIGHTS = {
    "lsq": tfc.WeightScheme(4, quantizer=tfc.LSQ()),
    "lsq2": tfc.WeightScheme(2, narrow_range=False, quantizer=tfc.LSQ()),
    "dorefa": tfc.WeightScheme(3, quantizer=tfc.DoReFaWeights()),
    "ternary": tfc.WeightScheme(2, quantizer=tfc.TernaryWeights()),
    "trained_ternary": tfc.WeightScheme(2, quantizer=tfc.TrainedTernary()),
    "binary": tfc.WeightScheme(2, quantizer=tfc.BinaryWeights()),
    "powers": tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights()),
    "logarithmic": tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights(True)),
    "apot": tfc.WeightScheme(4, quantizer=tfc.APoT()),
    "levels": tfc.WeightScheme(quantizer=tfc.LevelWeights((-60, -7, 0, 3, 127))),
}
ACTIVATIONS = {
    "lsq": tfc.ActivationScheme(quantizer=tfc.LSQPlus()),
    "dorefa": tfc.ActivationScheme(quantizer=tfc.PACT()),
    "binary": tfc.ActivationScheme(quantizer=tfc.DoReFaActivations(6.0)),
}


def float_model():
    """One branch for each quantizer; dense and convolutions, with and without batch norm."""
    inputs, outputs = keras.Input((6, 6, 4), name="image"), []
    for i, name in enumerate(WEIGHTS):
        if i % 2:
            x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=name)(inputs)
            x = layers.BatchNormalization(name=f"{name}_bn")(x)
        else:
            x = layers.Dense(8, name=name)(inputs)
        x = layers.GlobalAveragePooling2D()(layers.ReLU(name=f"{name}_relu")(x))
        outputs.append(layers.Dense(3, name=f"{name}_logits")(x))
    return keras.Model(inputs, outputs)


def config():
    by_name = {name: tfc.Scheme(weights) for name, weights in WEIGHTS.items()}
    for name, scheme in ACTIVATIONS.items():
        by_name[f"{name}_relu"] = tfc.Scheme(activations=scheme)
    return tfc.QuantizationConfig(by_name=by_name)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 1, (64, 6, 6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(images):
    model = tfc.quantize(float_model(), config(), calibration_data=images)
    model.compile(
        keras.optimizers.SGD(0.1),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True)] * len(WEIGHTS),
    )
    labels = [np.arange(64) % 3] * len(WEIGHTS)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    moved = {
        v.path
        for v, old in zip(model.trainable_variables, before, strict=True)
        if not np.array_equal(v.numpy(), old)
    }
    return model, moved


def test_the_file_holds_what_was_trained(trained, images, tmp_path, converter):
    model, moved = trained
    trainable = {v.path for v in model.trainable_variables}
    for part in ("step", "positive", "negative", "alpha", "lsq/kernel", "binary/kernel"):
        assert any(part in path for path in moved), (part, trainable - moved)
    report = tfc.export_tflite(model, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors
    assert {row.name: row.stored for row in report.layers if row.name in ("lsq", "lsq2")} == {
        "lsq": "int4",
        "lsq2": "int8",
    }
    bits = {row.name: row.num_bits for row in report.layers if row.name in WEIGHTS}
    assert bits == {
        "lsq": 4,
        "lsq2": 2,
        "dorefa": 4,
        "ternary": 2,
        "trained_ternary": 8,
        "binary": 2,
        "powers": 8,
        "logarithmic": 8,
        "apot": 8,
        "levels": 8,
    }
    runner = tfc.Runner(tmp_path / "m.tflite")
    found = runner.predict(images)
    for name, wanted in zip(WEIGHTS, model(images), strict=True):
        np.testing.assert_allclose(found[f"{name}_logits"], wanted, atol=1e-5)


def test_it_is_saved_loaded_and_cloned(trained, images, tmp_path):
    model, _ = trained
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for copy in (loaded, cloned):
        for found, wanted in zip(copy(images), model(images), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["binary", "dorefa", "apot"])
def test_a_pruned_kernel_needs_the_level_zero(name, images):
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Dense(8, name="d")])
    kernel = model.layers[0].kernel
    kernel.assign(np.where(np.abs(kernel.numpy()) < 0.2, 0.0, kernel.numpy()))
    scheme = tfc.Scheme(WEIGHTS[name])
    with pytest.raises(ValueError, match="'d'"):
        tfc.quantize(model, scheme, calibration_data=images)
    tfc.quantize(model, scheme, calibration_data=images, preserve_sparsity=False)


@pytest.mark.parametrize("preset", ["int4", "w2a8", "ternary", "binary", "lsq-w4a8"])
def test_presets(preset, images):
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Dense(8, name="d")])
    quantized = tfc.quantize(model, preset, calibration_data=images)
    codes = np.unique(quantized.get_layer("d").effective_weights()["kernel"][:, 0])
    assert len(codes) <= {"int4": 15, "w2a8": 4, "ternary": 3, "binary": 2, "lsq-w4a8": 15}[preset]


def test_pruning_leaves_out_kernels_whose_grid_has_no_zero(images):
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Dense(8, name="d"), layers.Dense(3, name="logits")]
    )
    config = tfc.QuantizationConfig(by_name={"d": "binary"})
    quantized = tfc.quantize(model, config, calibration_data=images)
    quantized.compile("sgd", "mse")
    pruner = tfc.Pruner(quantized, tfc.ConstantSparsity(0.5))
    assert pruner.skipped == {"d": "its weight quantizer has no level 0"}
    quantized = tfc.quantize(model, "binary", calibration_data=images)
    with pytest.raises(ValueError, match="no level 0"):
        tfc.Pruner(quantized, tfc.ConstantSparsity(0.5))


@pytest.mark.parametrize(
    ("preset", "rows", "stored"),
    [
        ("w2a8", 12, "int2"),
        ("binary", 12, "int2"),
        ("ternary", 10, "int4"),
        ("int4", 9, "int8"),
        ("ternary", 9, "int8"),
    ],
)
def test_dense_kernels_are_packed(preset, rows, stored, tmp_path, converter):
    """XNNPACK takes rows of whole bytes of 2-bit codes; others go to 4 bits."""
    data = np.random.default_rng(0).normal(size=(32, rows)).astype(np.float32)
    model = keras.Sequential(
        [keras.Input((rows,)), layers.Dense(16, "relu", name="a"), layers.Dense(6, name="b")]
    )
    quantized = tfc.quantize(model, preset, calibration_data=data)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=data)
    assert report.agreement == 1.0
    assert report.fully_delegated
    assert {row.name: row.stored for row in report.layers}["a"] == stored
    assert {entry.name: entry.stored for entry in quantized.plan}["a"] == (stored,)
    found = tfc.inspect_tflite(tmp_path / "m.tflite")
    assert stored in {tensor.dtype for tensor in found.tensors}
    out = tfc.Runner(tmp_path / "m.tflite").predict(data)
    np.testing.assert_allclose(next(iter(out.values())), quantized(data), atol=1e-5)
