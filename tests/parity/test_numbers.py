"""Inputs, weights and ranges of unusual size: the file computes what the model computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


def exported(quantized, samples, path, **options):
    """The report of an export, and the outputs of the file as LiteRT gives them."""
    report = tfc.export_tflite(quantized, path, verify_data=samples, **options)
    return report, next(iter(tfc.Runner(path).predict(samples).values()))


def small_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(4, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def pixels_with_halves():
    """Resized images of whole numbers: the range 0 to 255 has scale 1.0."""
    images = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3)).astype(np.float32)
    images = np.array(tf.image.resize(images, (6, 6)))
    images = np.round(2 * images) / 2
    images[0, 0, 0] = 0, 255, 255
    return images


@pytest.mark.parametrize("float_io", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_inputs_between_two_codes_round_to_even(tmp_path, pixels_with_halves, float_io, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    quantized = tfc.quantize(model, "int8", calibration_data=pixels_with_halves)
    assert np.mean(pixels_with_halves % 1 == 0.5) > 0.2
    report, _ = exported(quantized, pixels_with_halves, tmp_path / "m.tflite", float_io=float_io)
    assert report.agreement == 1.0


def residual_model(gamma):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(gamma))(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def dead_relu():
    model = small_model()
    model.get_layer("conv").bias.assign(np.full(4, -100.0))
    return model


def zero_head():
    model = small_model()
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * 0)
    return model


def tiny_kernel():
    model = small_model()
    conv = model.get_layer("conv")
    conv.kernel.assign(conv.kernel * 1e-12)
    return model


@pytest.mark.filterwarnings("ignore:The outputs of .* are zero:UserWarning")
@pytest.mark.filterwarnings("ignore:The values of 'head' are smaller")
@pytest.mark.parametrize(
    "make", [dead_relu, zero_head, tiny_kernel, lambda: residual_model(0.0)],
    ids=["dead_relu", "zero_head", "tiny_kernel", "zero_gamma"],
)  # fmt: skip
def test_a_tensor_of_zeros_is_exported(tmp_path, normal, make):
    model = make()
    quantized = tfc.quantize(model, "int8", calibration_data=normal)
    report, outputs = exported(quantized, normal, tmp_path / "m.tflite")
    assert report.agreement == 1.0
    assert report.fully_delegated
    expected = model.predict(normal, verbose=0)
    np.testing.assert_allclose(outputs, expected, atol=0.05 * np.abs(expected).max() + 1e-6)


def test_the_range_of_a_tensor_of_zeros_follows_what_comes_in_training(tmp_path, normal):
    model = residual_model(0.0)
    quantized = tfc.quantize(model, "int8", calibration_data=normal)
    quantized.compile(keras.optimizers.SGD(0.5), "mse")
    targets = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    quantized.fit(normal, targets, epochs=3, batch_size=8, verbose=0)
    branch = next(
        layer for layer in quantized.layers
        if isinstance(layer, FakeQuantize) and "batch_norm" in layer.source
    )  # fmt: skip
    assert float(branch.scale) != 2.0**-6
    report, _ = exported(quantized, normal, tmp_path / "m.tflite")
    assert report.agreement == 1.0


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (4, 2), (5, 7)])
def test_bilinear_upsampling_rounds_as_the_runtime(tmp_path, normal, size):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.UpSampling2D(size, interpolation="bilinear")(inputs))
    quantized = tfc.quantize(model, "int8", calibration_data=normal)
    report, _ = exported(quantized, normal, tmp_path / "m.tflite")
    assert report.agreement == 1.0
    assert report.ops == {"RESIZE_BILINEAR": 1}


def test_a_shared_bilinear_upsampling_knows_both_inputs(tmp_path, normal):
    inputs = keras.Input((6, 6, 3))
    up = layers.UpSampling2D(2, interpolation="bilinear")
    small = layers.Conv2D(3, 1, name="small")(inputs)
    model = keras.Model(inputs, [up(inputs), up(small)])
    small_conv = model.get_layer("small")
    small_conv.kernel.assign(small_conv.kernel * 0.1)
    quantized = tfc.quantize(model, "int8", calibration_data=normal)
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=normal).agreement == 1.0


def weak_kernel():
    """A kernel so small that, with one scale, the bias does not fit the units of its sum."""
    model = small_model()
    conv = model.get_layer("conv")
    conv.kernel.assign(conv.kernel * 1e-5)
    conv.bias.assign([0.5, -1.0, 2.0, 1.0])
    return model


def test_a_bias_that_int32_does_not_hold_names_the_layer(tmp_path, normal):
    scheme = tfc.Scheme(tfc.WeightScheme(per_channel=False))
    with pytest.warns(UserWarning, match="conv: its bias is"):
        quantized = tfc.quantize(weak_kernel(), scheme, calibration_data=normal)
    with pytest.raises(ValueError, match=r"conv: its bias is .* which int32 does not hold"):
        exported(quantized, normal, tmp_path / "m.tflite")


def test_channels_that_a_penalty_drives_to_zero_are_exported(tmp_path, normal):
    """Weights and γ pass every size on their way to 0; bias and β stay."""
    sizes = np.float32([1, 1e-3, 1e-5, 1e-6, 3e-7, 1e-8, 1e-15, 0])
    inputs = keras.Input((6, 6, 3))
    kernels = [
        layers.Conv2D(8, 3, bias_initializer="ones"),
        layers.Dense(8, bias_initializer="ones"),
        layers.Conv2DTranspose(8, 2, bias_initializer="ones"),
    ]
    outputs = [kernel(inputs) for kernel in kernels]
    wide = layers.Conv2D(8, 1)(inputs)
    norms = [layers.BatchNormalization(beta_initializer="ones") for _ in range(4)]
    decayed = layers.Conv2D(8, 1, use_bias=False)
    before = [layers.Conv2D(8, 1)(inputs), layers.DepthwiseConv2D(3)(wide), decayed(inputs)]
    before.append(layers.MaxPooling2D(2)(wide))
    outputs += [norm(x) for norm, x in zip(norms, before, strict=True)]
    layer_norm = layers.LayerNormalization(beta_initializer="ones")
    outputs.append(layer_norm(wide))
    model = keras.Model(inputs, outputs)
    for layer in (*kernels, decayed):
        axis = (8, 1) if isinstance(layer, layers.Conv2DTranspose) else (8,)
        layer.kernel.assign(layer.kernel * sizes.reshape(axis))
    for layer in (*norms[:2], norms[3], layer_norm):
        layer.gamma.assign(sizes)
    norms[2].moving_variance.assign(np.full(8, 1e-4))
    quantized = tfc.quantize(model, calibration_data=normal)
    report, _ = exported(quantized, normal, tmp_path / "m.tflite")
    assert not report.float_tensors
    assert report.agreement == 1.0
    for given, expected in zip(quantized.predict(normal, verbose=0), model(normal), strict=True):
        assert np.max(np.abs(given - expected)) < 0.1 * np.max(np.abs(expected))


def test_a_sum_that_the_runtime_refuses_names_the_layer(tmp_path, normal):
    quantized = tfc.quantize(small_model(), "int8", calibration_data=1000 * normal)
    after_relu = next(
        layer for layer in quantized.layers
        if isinstance(layer, FakeQuantize) and layer.source == "conv"
    )  # fmt: skip
    after_relu.set_range(0.0, 1e-6)
    with pytest.raises(ValueError, match=r"conv: one unit of its sum is .* steps of its output"):
        exported(quantized, normal, tmp_path / "m.tflite")


@pytest.fixture(scope="module")
def weak_branches(normal):
    """Residual branches that are a millionth of what they are added to, or subtracted from."""
    inputs = keras.Input(normal.shape[1:])
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    branch = layers.Rescaling(1e-6, name="branch")(layers.Conv2D(4, 1, name="conv")(x))
    x = layers.Add(name="sum")([x, branch])
    x = layers.Subtract(name="difference")([branch, x])
    return tfc.quantize(keras.Model(inputs, x), calibration_data=normal)


def test_operands_too_small_for_xnnpack_are_exact_and_in_the_report(
    weak_branches, normal, tmp_path
):
    report, _ = exported(weak_branches, normal, tmp_path / "m.tflite")
    assert report.agreement == 1.0
    for name in ("sum", "difference"):
        assert f"'{name}' does not run under XNNPACK" in str(report)
    assert set(report.ops_outside) == {"ADD", "SUB"}


@pytest.mark.filterwarnings("ignore:The ranges of")
def test_operands_far_too_large_for_their_output_name_the_layer(weak_branches, normal, tmp_path):
    """LiteRT saturates such a sum wrongly, or aborts the process."""
    quantized = keras.models.clone_model(weak_branches)
    quantized.set_weights(weak_branches.get_weights())
    quantized.get_layer("sum_quantizer").set_range(-1e-4, 1e-4)
    with pytest.raises(ValueError, match=r"sum: one step of its input from 'stem' is .* steps"):
        exported(quantized, normal, tmp_path / "m.tflite")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_weights_that_are_no_ordinary_numbers_name_the_layer(tmp_path, normal, value):
    model = small_model()
    quantized = tfc.quantize(model, "int8", calibration_data=normal)
    for owner in (model, quantized):
        conv = owner.get_layer("conv")
        kernel = conv.kernel.numpy()
        kernel[0, 0, 0, 0] = value
        conv.kernel.assign(kernel)
    with pytest.raises(ValueError, match="kernel of conv"):
        tfc.quantize(model, "int8", calibration_data=normal)
    with pytest.raises(ValueError, match="kernel of conv"):
        exported(quantized, normal, tmp_path / "m.tflite")


def test_new_samples_outside_the_calibrated_range_are_in_the_report(tmp_path, normal):
    quantized = tfc.quantize(small_model(), "int8", calibration_data=normal)
    with pytest.warns(UserWarning, match="lie outside the range"):
        report, _ = exported(quantized, normal * 4, tmp_path / "m.tflite")
    assert report.agreement == 1.0
    assert "lie outside the range" in str(report)


@keras.saving.register_keras_serializable(package="tests_numbers")
class Sum(layers.Layer):
    """x + w with trained values of one size."""

    def __init__(self, size, equal=False, **kwargs):
        super().__init__(**kwargs)
        self.size, self.equal = size, equal

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=shape[1:])
        values = np.random.default_rng(0).normal(size=shape[1:])
        self.w.assign(self.size * (np.ones(shape[1:]) if self.equal else values))

    def call(self, x):
        return x + self.w


def test_weights_of_any_size_are_added_as_the_runtime_adds_them(tmp_path):
    """A bias that training just began with is 10⁻⁴ of what it is added to."""
    inputs = keras.Input((6, 4))
    sizes = (1e-6, 1e-4, 1e-3, 0.05, 1.0, 200.0)
    sums = [Sum(size)(inputs) for size in sizes]
    sums += [Sum(size, equal=True)(inputs) for size in (0.0, 1e-4, -0.3, 8.0)]
    # Rectified, their scales are other than that of the input, and what is added can decide.
    sums = [layers.ReLU()(x) for x in sums]
    samples = np.random.default_rng(1).normal(size=(400, 6, 4)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, sums), calibration_data=samples)
    report, _ = exported(quantized, samples, tmp_path / "m.tflite")
    assert not report.float_tensors
    assert report.agreement == 1.0


@pytest.mark.filterwarnings("ignore:The outputs of .* are zero on all calibration data")
def test_a_branch_that_starts_from_zeros_trains_and_ships(tmp_path):
    """As the last layer of a residual branch, a detector's head or a modulation often does."""
    inputs, condition = keras.Input((6, 4)), keras.Input((8,))
    moved = layers.Dense(8, kernel_initializer="zeros", name="moved")(condition)
    factor, offset = ops.split(layers.Reshape((1, 8))(moved), 2, axis=-1)
    model = keras.Model([inputs, condition], (1 + factor) * inputs + offset)
    random = np.random.default_rng(0)
    samples = [random.normal(size=(64, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    # Gains and offsets that the condition tells.
    targets = samples[0] * (1 + 0.5 * samples[1][:, None, :4]) + samples[1][:, None, 4:]
    before = np.mean((samples[0] - targets) ** 2)
    quantized = tfc.quantize(model, calibration_data=samples)
    quantized.compile(keras.optimizers.Adam(0.02), "mse")
    quantized.fit(samples, targets, batch_size=8, epochs=8, verbose=0)
    assert quantized.evaluate(samples, targets, verbose=0) < 0.3 * before
    report, _ = exported(quantized, samples, tmp_path / "m.tflite")
    assert not report.float_tensors
    assert report.agreement == 1.0
