"""What the plan leaves in float is float in the file, wherever it stands, and the file agrees.

The file is looked at with the runtime: its operators and the types of their tensors.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.constants import tflite_layout

_AGREEMENT = 0.98


class Shuffled(layers.Layer):
    """A custom layer of operations that have an int8 form, and some that have none."""

    def call(self, inputs):
        return inputs[..., ::-1] * keras.ops.arctan2(inputs, inputs[:, ::-1]) + 0.25


class Doubled(layers.Conv2D):
    """A user's subclass of a Keras layer."""

    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 1, (64, 8, 8, 4)).astype(np.float32)


def spread(model):
    """Gives a model weights that int8 hurts: large and small ones in every channel."""
    random = np.random.default_rng(1)
    for layer in model._flatten_layers(include_self=False):
        for variable in [] if isinstance(layer, keras.Model) else layer.weights:
            if "kernel" in variable.name:
                variable.assign(variable * np.exp(random.normal(0, 1.5, variable.shape)))
            elif variable.name in ("bias", "beta", "moving_mean"):
                variable.assign(random.normal(0, 0.1, variable.shape))
            elif variable.name in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


class File:
    """A `.tflite` in the runtime, without a delegate, which would hide operators."""

    def __init__(self, data: bytes):
        self.data = data
        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        runtime = Interpreter(model_content=data, experimental_op_resolver_type=kind)
        runtime.allocate_tensors()
        self.tensors = {d["index"]: d for d in runtime.get_tensor_details()}
        self.ops = runtime._get_ops_details()
        self._get = runtime.tensor

    def kernels(self, dtype) -> list[np.ndarray]:
        """Constant operands of more than one axis, of the operators that give this type."""
        found = []
        for op in self.ops:
            if self.tensors[op["outputs"][0]]["dtype"] == dtype:
                for index in (i for i in op["inputs"] if i >= 0):
                    detail = self.tensors[index]
                    is_constant = not any(index in other["outputs"] for other in self.ops)
                    if is_constant and detail["dtype"] == dtype and len(detail["shape"]) > 1:
                        found.append(np.squeeze(self._get(index)()))
        return found

    def run(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        """`(outputs, step)` under XNNPACK, inputs quantized as an app would."""
        runtime = Interpreter(model_content=self.data)
        runtime.allocate_tensors()
        given, result = runtime.get_input_details()[0], runtime.get_output_details()[0]
        outputs = []
        for image in images:
            scale, zero_point = given["quantization"]
            if given["dtype"] == np.int8:
                image = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127)
            runtime.set_tensor(given["index"], image[None].astype(given["dtype"]))
            runtime.invoke()
            outputs.append(runtime.get_tensor(result["index"])[0].copy())
        scale, zero_point = result["quantization"]
        outputs = np.array(outputs, np.float64)
        if result["dtype"] == np.int8:
            return (outputs - zero_point) * scale, scale
        return outputs, float(np.ptp(outputs)) / 255


def stack(*middle, first="first", last="last"):
    x = image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(7, 3, padding="same", activation="relu", name=first)(x)
    for layer in middle:
        x = layer(x)
    x = layers.Conv2D(6, 3, activation="relu", name="after")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, name=last)(x))


def branches():
    image = keras.Input((8, 8, 4), name="image")
    stem = layers.Conv2D(7, 3, padding="same", activation="relu", name="stem")(image)
    left = layers.Conv2D(9, 1, name="left")(stem)
    right = layers.Conv2D(9, 3, padding="same", activation="relu", name="right")(stem)
    x = layers.Concatenate(name="join")([layers.Add(name="add")([left, right]), left])
    return keras.Model(image, layers.Conv2D(5, 3, name="last")(x))


def shared():
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(9, 1, name="stem")(image)
    twice = layers.Conv2D(9, 3, padding="same", name="twice")
    return keras.Model(image, layers.Conv2D(5, 3, name="last")(twice(layers.ReLU()(twice(x)))))


def nested():
    given = keras.Input((8, 8, 7))
    inside = layers.Conv2D(10, 3, name="deep", activation="relu")(given)
    inside = layers.Conv2D(8, 1, name="deeper")(inside)
    return stack(keras.Model(given, inside, name="inner"))


_CONV = {"name": "mid", "padding": "same"}
# Case → (model, names left in float).
CASES = {
    "middle": (lambda: stack(layers.Conv2D(9, 3, **_CONV)), ["mid"]),
    "middle_relu": (lambda: stack(layers.Conv2D(9, 3, activation="relu", **_CONV)), ["mid"]),
    "before_relu": (lambda: stack(layers.Conv2D(9, 3, **_CONV), layers.ReLU()), ["mid"]),
    "after_kernel": (lambda: stack(layers.Conv2D(9, 3, **_CONV), layers.ReLU(name="r")), ["r"]),
    "batch_norm": (
        lambda: stack(layers.Conv2D(9, 3, **_CONV), layers.BatchNormalization(), layers.ReLU()),
        ["mid"],
    ),
    "only_batch_norm": (
        lambda: stack(layers.Conv2D(9, 3, **_CONV), layers.BatchNormalization(name="norm")),
        ["norm"],
    ),
    "first": (stack, ["first"]),
    "last": (stack, ["last"]),
    "mean": (stack, ["mean"]),
    "first_and_last": (stack, ["first", "last"]),
    "two_in_a_row": (stack, ["first", "after"]),
    "all_kernels": (stack, ["first", "after", "last"]),
    "dilated": (lambda: stack(layers.Conv2D(9, 3, dilation_rate=2, **_CONV)), ["mid"]),
    "transposed": (
        lambda: stack(layers.Conv2DTranspose(9, 3, strides=2, activation="relu", **_CONV)),
        ["mid"],
    ),
    "grouped": (lambda: stack(layers.Conv2D(14, 3, groups=7, **_CONV)), ["mid"]),
    "depthwise": (lambda: stack(layers.DepthwiseConv2D(5, **_CONV)), ["mid"]),
    "dense": (lambda: stack(layers.Dense(9, name="mid")), ["mid"]),
    "branch": (branches, ["left"]),
    "other_branch": (branches, ["right"]),
    "join": (branches, ["join"]),
    "sum": (branches, ["add"]),
    "shared": (shared, ["twice"]),
    "nested": (nested, ["deep"]),
    "nested_whole": (nested, ["deep", "deeper"]),
    "custom": (lambda: stack(Shuffled(name="mid")), []),
    "subclass": (lambda: stack(Doubled(9, 3, name="mid")), []),
    "resizing": (lambda: stack(layers.Resizing(16, 16, name="mid")), []),
    "softsign": (lambda: stack(layers.Activation("softsign", name="mid")), []),
}


def _keras_name(layer):
    return next(c.__name__ for c in type(layer).__mro__ if c.__module__.startswith("keras."))


# The weights are spread on purpose.
@pytest.mark.filterwarnings("ignore:The ranges of")
@pytest.mark.parametrize("case", CASES)
def test_float_layers_are_float_in_the_file(case, images, tmp_path):
    make, names = CASES[case]
    model = spread(make())
    config = tfc.QuantizationConfig(by_name=dict.fromkeys(names))
    quantized = tfc.quantize(model, config, calibration_data=images)
    path = tmp_path / "model.tflite"
    tfc.export_tflite(quantized, path, allow_float=not names)
    file = File(path.read_bytes())
    in_float, in_codes = file.kernels(np.float32), file.kernels(np.int8)
    for layer in model._flatten_layers(include_self=False):
        if not hasattr(layer, "kernel"):
            continue
        kernel = np.squeeze(tflite_layout(layer.kernel.numpy(), _keras_name(layer)))
        wanted, other = in_codes, in_float
        if layer.name in names:
            wanted, other = in_float, in_codes
            # What follows in float, a batch norm or a factor, may be folded into it.
            if case != "batch_norm":
                assert any(k.shape == kernel.shape and np.allclose(k, kernel) for k in wanted)
        assert any(k.shape == kernel.shape for k in wanted), layer.name
        assert not any(k.shape == kernel.shape for k in other), layer.name
    outputs, step = file.run(images)
    expected = quantized.predict(images, verbose=0)
    assert np.mean(np.abs(outputs - expected) < step / 2) >= _AGREEMENT
    assert np.unique(expected).size > 20


@pytest.mark.filterwarnings("ignore:The ranges of")
def test_what_is_left_in_float_changes_the_outputs(images, tmp_path):
    """The weights of these tests are such that a float layer in int8 would be seen."""
    model = spread(stack(layers.Conv2D(9, 3, **_CONV)))
    config = tfc.QuantizationConfig(by_name={"mid": None})
    in_float = tfc.quantize(model, config, calibration_data=images)
    in_int8 = tfc.quantize(model, calibration_data=images)
    tfc.export_tflite(in_int8, tmp_path / "model.tflite")
    outputs, step = File((tmp_path / "model.tflite").read_bytes()).run(images)
    expected = in_float.predict(images, verbose=0)
    assert np.mean(np.abs(outputs - expected) < step / 2) < 0.9


def test_constants_left_in_float_keep_their_values(images, tmp_path):
    """Four readers of a constant: a product, a sum, a choice and a concatenation."""
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="first")(image)
    x = x * keras.ops.full_like(image, 0.5) + keras.ops.full_like(x, 0.25)
    x = keras.ops.where(x > 0.3, keras.ops.ones_like(x), x)
    x = keras.ops.concatenate([x, keras.ops.zeros_like(x)], axis=1)
    model = keras.Model(image, layers.Conv2D(5, 3, name="last")(x))
    names = [o.name for o in model.operations if "_like" in o.name]
    config = tfc.QuantizationConfig(by_name=dict.fromkeys(names))
    quantized = tfc.quantize(model, config, calibration_data=images)
    tfc.export_tflite(quantized, tmp_path / "model.tflite")
    outputs, step = File((tmp_path / "model.tflite").read_bytes()).run(images)
    expected = quantized.predict(images, verbose=0)
    assert np.mean(np.abs(outputs - expected) < step / 2) >= _AGREEMENT
    assert len(names) == 4


class Guided(layers.Layer):
    """Reads its second tensor in training alone, as the sampling of a variational autoencoder."""

    def call(self, x, guide, training=None):
        noise = keras.random.normal(keras.ops.shape(x)) if training else 0.0
        return x + keras.ops.exp(guide) * noise if training else x


def test_what_a_layer_in_float_reads_in_training_alone_is_not_in_the_file(images, tmp_path):
    image = keras.Input((8, 8, 4), name="image")
    mean = layers.Conv2D(4, 3, name="mean")(image)
    deviation = layers.Conv2D(4, 3, name="deviation")(image)
    outputs = layers.Conv2D(3, 3, name="last")(Guided(name="guided")(mean, deviation))
    quantized = tfc.quantize(keras.Model(image, outputs), calibration_data=images)
    assert set(quantized.plan.float_layers) == {"guided"}
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", allow_float=True)
    assert report.agreement >= _AGREEMENT
    file = tfc.inspect_tflite(tmp_path / "model.tflite")
    assert file.op_counts["CONV_2D"] == 2
