"""`quantize`: what it returns, what it leaves untouched, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.model.compressed import is_compressed
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


def quantizers(model):
    return [layer for layer in model.layers if isinstance(layer, FakeQuantize)]


def ranges(model):
    return {q.name: q.range for q in quantizers(model)}


def test_the_given_model_is_untouched_and_the_copy_close(small_model, images):
    config = small_model.get_config()
    weights = [w.copy() for w in small_model.get_weights()]
    expected = small_model.predict(images, verbose=0)
    quantized = tfc.quantize(small_model, calibration_data=images)
    assert small_model.get_config() == config
    for a, b in zip(weights, small_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    names = [layer.name for layer in quantized.layers if not isinstance(layer, FakeQuantize)]
    assert names == [layer.name for layer in small_model.layers]
    assert quantized.output_names == ["logits"]
    result = quantized.predict(images, verbose=0)
    span = expected.max() - expected.min()
    assert 0 < np.abs(result - expected).max() < 0.05 * span
    quantized.summary(print_fn=lambda text: None)
    # One scale per output channel, for depthwise and dense too.
    for name, channels in (("conv", 4), ("depthwise", 4), ("logits", 3)):
        layer = quantized.get_layer(name)
        _, rounded = layer.transformed(training=False)
        assert len(np.unique(rounded.scale)) == channels


def feeds(images):
    return {
        "array": images,
        "tensor": tf.constant(images),
        "list_of_one": [images],
        "dict": {"image": images},
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(10),
        "dataset_with_labels": tf.data.Dataset.from_tensor_slices(
            (images, np.zeros(len(images)))
        ).batch(64),
        "dataset_of_dicts": tf.data.Dataset.from_tensor_slices({"image": images}).batch(7),
        "generator": (images[i : i + 8] for i in range(0, 64, 8)),
        "generator_with_labels": ((images[i : i + 32], None) for i in (0, 32)),
    }


@pytest.fixture
def sequential():
    return keras.Sequential(
        [keras.Input((8, 8, 1), name="image"), layers.Conv2D(2, 3), layers.Flatten()]
    )


def test_every_form_of_calibration_data_gives_the_same_ranges(sequential, images):
    found = {
        form: ranges(tfc.quantize(sequential, calibration_data=data))
        for form, data in feeds(images).items()
    }
    expected = found.pop("array")
    assert len(expected) == 2
    assert expected["image_quantizer"] == pytest.approx((0.0, 1.0), abs=1e-6)
    for form, result in found.items():
        assert result == expected, form


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"\(None, 8, 8, 1\) for the input 'image'.*8, 8, 3"),
        (np.zeros((8, 8, 1), np.float32), "Expected batches of shape"),
        (np.full((4, 8, 8, 1), np.nan), "finite calibration data for the input 'image'"),
        (np.full((4, 8, 8, 1), np.inf), "finite calibration data"),
        (np.zeros((0, 8, 8, 1), np.float32), "at least one sample"),
        ([], "at least one sample"),
        (iter(()), "at least one sample"),
        ({"picture": np.zeros((4, 8, 8, 1))}, r"\['picture'\], without \['image'\]"),
        ([np.zeros((4, 8, 8, 1)), np.zeros((4, 1))], r"Received: \(4, 1\)"),
    ],
)
def test_wrong_calibration_data(sequential, data, message):
    with pytest.raises(ValueError, match=message):
        tfc.quantize(sequential, calibration_data=data)


def test_an_already_quantized_model_is_refused(sequential, images):
    quantized = tfc.quantize(sequential, calibration_data=images)
    with pytest.raises(ValueError, match=r"not quantized yet.*tfcompress\.strip"):
        tfc.quantize(quantized)
    stripped = tfc.strip(quantized)
    assert quantizers(tfc.quantize(stripped))


def test_without_data_the_first_training_batch_gives_the_ranges(sequential, images):
    quantized = tfc.quantize(sequential)
    np.testing.assert_allclose(quantized(images), sequential(images), atol=0.02)
    assert all(q.scale.numpy() == 0 for q in quantizers(quantized))
    quantized.compile("sgd", "mse")
    quantized.train_on_batch(images, np.zeros((64, 72), np.float32))
    assert all(q.scale.numpy() > 0 for q in quantizers(quantized))


MODES = [
    {"jit_compile": True},
    {"jit_compile": False},
    {"jit_compile": False, "steps_per_execution": 8},
]


def test_every_mode_of_fit_trains_the_same(small_model, images):
    results = []
    for mode in MODES:
        quantized = tfc.quantize(small_model, calibration_data=images)
        quantized.compile(keras.optimizers.SGD(0.05), "mse", **mode)
        history = quantized.fit(
            images, np.ones((64, 3)), batch_size=8, epochs=2, shuffle=False, verbose=0
        )
        results.append([*history.history["loss"], *quantized.get_layer("conv").kernel.numpy().flat])
    assert results[0][1] < results[0][0]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_reloads(policy, images, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, activation="silu", padding="same")(inputs)
        x = layers.PReLU()(layers.BatchNormalization()(layers.SeparableConv2D(4, 3)(x)))
        x = layers.Average()([x, layers.AveragePooling2D(3, 1, "same")(x)])
        model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Rescaling(2.0)(x))))
        quantized = tfc.quantize(model, calibration_data=images)
        quantized.compile("sgd", "mse")
        quantized.fit(images, np.zeros((64, 3)), verbose=0)
        quantized.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    first = quantized.predict(images, verbose=0)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, loaded.predict(images, verbose=0))
    kernels = [la.effective_weights()["kernel"] for la in loaded.layers if is_compressed(la)]
    assert {k.dtype for k in kernels} == {tf.float32}


def test_both_kinds_of_file_and_clones_give_the_same_bits(images, tmp_path):
    inputs = keras.Input((8, 8, 1), name="image")
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    a = shared(inputs)
    b = layers.BatchNormalization()(shared(layers.Concatenate()([a, inputs])[..., :1] * 3.0))
    join = layers.Concatenate(name="join")([a, b])
    model = keras.Model(inputs, {"join": join, "flat": layers.Flatten()(b)})
    quantized = tfc.quantize(model, calibration_data=images)
    quantized.compile("sgd", "mse")
    targets = {"join": np.zeros((64, 8, 8, 4)), "flat": np.zeros((64, 128))}
    quantized.fit(images, targets, verbose=0)
    expected = quantized.predict(images, verbose=0)
    quantized.save(tmp_path / "m.keras")
    quantized.save_weights(tmp_path / "m.weights.h5")
    from_weights = tfc.quantize(model)
    from_weights.load_weights(tmp_path / "m.weights.h5")
    clone = keras.models.clone_model(quantized)
    clone.set_weights(quantized.get_weights())
    for copy in (keras.models.load_model(tmp_path / "m.keras"), from_weights, clone):
        result = copy.predict(images, verbose=0)
        for key, value in expected.items():
            np.testing.assert_array_equal(result[key], value)
        assert len(quantizers(copy)) == len(quantizers(quantized))
        assert len(copy.layers) == len(quantized.layers)


def test_the_zeros_of_a_pruned_model_stay_through_training(small_model, images):
    random = np.random.default_rng(0)
    for name in ("conv", "depthwise", "logits"):
        variable = small_model.get_layer(name).kernel
        variable.assign(variable * (random.uniform(size=variable.shape) > 0.5))
    quantized = tfc.quantize(small_model, calibration_data=images)
    without = tfc.quantize(small_model, calibration_data=images, preserve_sparsity=False)
    zeros = {n: small_model.get_layer(n).kernel.numpy() == 0 for n in ("conv", "logits")}
    for model in (quantized, without):
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.fit(images, np.ones((64, 3)), epochs=2, verbose=0)
    for name, mask in zeros.items():
        assert 0.3 < mask.mean() < 0.7
        kernel = np.asarray(quantized.get_layer(name).effective_weights()["kernel"])
        assert not kernel[mask].any()
        other = np.asarray(without.get_layer(name).effective_weights()["kernel"])
        assert np.mean(other[mask] != 0) > 0.5


@pytest.mark.filterwarnings("ignore:The outputs of dead are zero")
@pytest.mark.parametrize("config", ["int8", tfc.Scheme(tfc.WeightScheme(per_channel=False))])
def test_channels_of_zeros_and_constant_activations(config, images):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, name="conv", bias_initializer="ones")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    dead = layers.Conv2D(2, 3, kernel_initializer="zeros", name="dead")(x)
    model = keras.Model(inputs, [x, dead])
    kernel = model.get_layer("conv").kernel
    kernel.assign(kernel * np.float32([1, 0, 1]))
    quantized = tfc.quantize(model, config, calibration_data=images)
    for a, b in zip(quantized(images), model(images), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=0.05)


class Custom(layers.Layer):
    def call(self, x):
        return ops.arctan2(x, x)


def test_a_custom_layer_stays_in_float_and_is_named(images):
    inputs = keras.Input((8, 8, 1))
    x = Custom(name="sums")(layers.Conv2D(2, 3)(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(x))
    quantized = tfc.quantize(model, calibration_data=images)
    assert quantized.plan.float_layers == {"sums": "LiteRT has no int8 form of Arctan2"}
    assert [q.name for q in quantizers(quantized)][2] == "sums_quantizer"


def test_a_float_layer_with_several_outputs(images):
    class Both(layers.Layer):
        def call(self, x):
            return ops.arctan2(x, x), ops.arctan2(x, x)

        def compute_output_shape(self, shape):
            return shape, shape

    inputs = keras.Input((8, 8, 1))
    a, b = Both(name="both")(inputs)
    model = keras.Model(inputs, [layers.Conv2D(1, 3)(a), layers.Conv2D(1, 3)(b)])
    quantized = tfc.quantize(model, calibration_data=images)
    assert sum(name.startswith("both") for name in ranges(quantized)) == 2


@pytest.mark.filterwarnings("ignore:'concatenate' joins tensors")
def test_integer_inputs_stay_integers():
    tokens, image = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((4,), name="x")
    x = layers.Flatten()(layers.Embedding(10, 4)(tokens))
    model = keras.Model([tokens, image], layers.Dense(2)(layers.Concatenate()([x, image])))
    data = [np.arange(40).reshape(8, 5) % 10, np.random.default_rng(0).normal(size=(8, 4))]
    quantized = tfc.quantize(model, calibration_data=data)
    assert not quantized.plan.float_layers
    assert quantized.inputs[0].dtype == "int32"
    np.testing.assert_allclose(quantized(data), model(data), atol=0.05)


def test_layer_names_that_nested_models_have_in_common(images):
    def tower(name):
        parts = [keras.Input((8, 8, 1)), layers.Conv2D(2, 3, name="conv"), layers.ReLU(name="relu")]
        return keras.Sequential(parts, name=name)

    inputs = keras.Input((8, 8, 1))
    left, right = tower("left"), tower("right")
    model = keras.Model(inputs, layers.Add()([left(inputs), right(inputs)]))
    config = tfc.QuantizationConfig(by_name={"right/conv": None})
    quantized = tfc.quantize(model, config, calibration_data=images)
    assert is_compressed(quantized.get_layer("conv"))
    assert not is_compressed(quantized.get_layer("right_conv"))
    assert list(quantized.plan.float_layers) == ["right/conv"]
    np.testing.assert_allclose(quantized(images), model(images), atol=0.05)


def test_output_names_are_kept_by_shared_ranges_nested_models_and_files(images, tmp_path):
    inputs = keras.Input((8, 8, 1))
    a = layers.Conv2D(2, 3, name="a")(inputs)
    b = layers.Conv2D(2, 3, activation="silu", name="b")(inputs)
    c = layers.Concatenate(name="c")([a, b])
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(1, 1)], name="inner")
    model = keras.Model(inputs, [a, b, c, inner(c)])
    assert model.output_names == ["a", "b", "c", "inner"]
    quantized = tfc.quantize(model, calibration_data=images)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for copy in (quantized, loaded):
        assert copy.output_names == model.output_names
        copy.compile("sgd", loss={"inner": "mae", "c": "mae", "b": "mse", "a": "mse"})
        channels = {"a": 2, "b": 2, "c": 4, "inner": 1}
        targets = {name: np.zeros((64, 6, 6, n)) for name, n in channels.items()}
        assert np.isfinite(copy.train_on_batch(images, targets)).all()


def test_models_that_have_no_graph_are_refused():
    with pytest.raises(ValueError, match=r"Sequential .* without an input shape"):
        tfc.quantize(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(TypeError, match="Expected a Keras model"):
        tfc.quantize("model.keras")


def test_adapted_normalization_and_shared_pooling_of_two_sizes(images):
    norm = layers.Normalization(axis=-1)
    norm.adapt(images)
    pool = layers.AveragePooling2D(3, 1, "same")
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, [pool(norm(inputs)), pool(layers.Conv2D(1, 3)(inputs))])
    quantized = tfc.quantize(model, calibration_data=images)
    assert not quantized.plan.float_layers
    for a, b in zip(quantized(images), model(images), strict=True):
        np.testing.assert_allclose(a, b, atol=0.06)
