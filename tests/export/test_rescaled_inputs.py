"""A Rescaling of pixels is the scale and zero point of the input, as the bare runtime reads it."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfcompress as tfc
from tfcompress.export.bundle.files import check_golden, read_bundle
from tfcompress.export.flatbuffer.metadata_entries import with_entry
from tfcompress.files import input_codes

PIXELS = np.random.default_rng(0).integers(20, 240, (24, 8, 8, 3)).astype("float32")


def model_of(rescale, dtype="float32"):
    image = keras.Input((8, 8, 3), name="image", dtype=dtype)
    # Padded, so that the code of the rescaled 0 matters.
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(rescale(image))
    return keras.Model(image, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)))


def steps_off(path, model, x):
    """Largest difference of the bare runtime, fed with bytes, from a model, in output steps."""
    runtime = Interpreter(str(path))
    runtime.allocate_tensors()
    given, gives = runtime.get_input_details()[0], runtime.get_output_details()[0]
    first = {np.int8: -128, np.uint8: 0, np.float32: 0}[given["dtype"]]
    found = []
    for sample in x:
        runtime.set_tensor(given["index"], (sample + first).astype(given["dtype"])[None])
        runtime.invoke()
        found.append(runtime.get_tensor(gives["index"])[0].astype(float))
    scale, zero_point = gives["quantization"]
    unit = scale or 1e-4
    real = (np.array(found) - zero_point) * (scale or 1.0)
    return np.abs(model.predict(x, verbose=0) - real).max() / unit


@pytest.fixture(scope="module")
def trained():
    """`x / 127.5 − 1` of operations, quantized, trained and loaded again."""
    model = model_of(lambda x: x / 127.5 - 1.0)
    model = tfc.quantize(model, calibration_data=PIXELS)
    model.compile("sgd", "mse")
    model.fit(PIXELS, np.zeros((24, 3)), verbose=0)
    return keras.models.model_from_json(model.to_json()), model


@pytest.mark.parametrize("input_type", ["int8", "uint8"])
def test_bytes_are_codes(trained, tmp_path, input_type):
    clone, model = trained
    clone.set_weights(model.get_weights())
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(clone, path, verify_data=PIXELS, input_type=input_type)
    assert report.agreement == 1
    assert "DEPTHWISE_CONV_2D" not in report.ops
    assert not report.float_tensors
    assert any("'image' is " in note for note in report.input_notes)
    assert "no operator of the file" in str(report)
    assert steps_off(path, model, PIXELS) < 0.01
    first = -128 if input_type == "int8" else 0
    info = tfc.Runner(path).inputs["image"]
    assert (info.scale, info.zero_point) == (1.0, first)
    (entry,) = read_bundle(path).metadata["signatures"][0]["inputs"]
    assert (entry["scale"], entry["zero_point"]) == (1.0, first)
    assert check_golden(path) == 0
    runtime = Interpreter(str(path))
    scale, zero_point = runtime.get_input_details()[0]["quantization"]
    # Those of (pixel − 128) / 127.5.
    assert (scale, zero_point) == (pytest.approx(1 / 127.5), first + 128)
    teacher = tfc.TFLiteTeacher(path)
    np.testing.assert_allclose(
        teacher.predict(PIXELS)[0], model.predict(PIXELS, verbose=0), atol=1e-6
    )


def test_float_inputs_are_rescaled_in_the_file(trained, tmp_path):
    _, model = trained
    path = tmp_path / "m.tflite"
    assert tfc.export_tflite(model, path, verify_data=PIXELS, float_io=True).agreement == 1
    assert steps_off(path, model, PIXELS) < 0.01


def test_a_model_of_uint8_pixels(tmp_path):
    path, pixels = tmp_path / "m.tflite", PIXELS.astype("uint8")
    model = model_of(layers.Rescaling(1 / 255, name="scaled"), "uint8")
    model = tfc.quantize(model, calibration_data=pixels)
    assert next(e for e in model.plan if e.name == "scaled").activations.endswith("of image")
    report = tfc.export_tflite(model, path, verify_data=pixels)
    assert report.agreement == 1
    assert not report.float_tensors
    assert steps_off(path, model, pixels) < 0.01
    assert type(tfc.strip(model).get_layer("scaled")) is layers.Rescaling


@pytest.mark.parametrize(
    ("rescaling", "note"),
    [
        (layers.Rescaling(1 / 127.5, -1.0, name="scaled"), "pixel 128 becomes 0, and not 127.5"),
        (layers.Rescaling(1 / 255, name="scaled"), ""),
        (layers.Rescaling(1 / 128, -1.0, name="scaled"), ""),
    ],
)
def test_the_plan_says_where_zero_moves(rescaling, note):
    (entry,) = (e for e in tfc.plan(model_of(rescaling)) if e.name == "scaled")
    assert "scale and zero point of image" in entry.activations
    assert note in "".join(entry.notes)
    assert bool(note) == bool(entry.notes)


@pytest.mark.parametrize(
    ("rescale", "config"),
    [
        (layers.Rescaling([1 / 255, 1 / 254, 1 / 253], name="own"), "int8"),
        (layers.Rescaling(1 / 60, -2.0, name="no_pixels"), "int8"),
        (layers.Rescaling(1 / 255, 1.5, name="no_zero"), "int8"),
        (lambda x: layers.Concatenate()([layers.Rescaling(1 / 255)(x), x]), "int8"),
        (lambda x: layers.Activation("relu")(layers.Rescaling(1 / 127.5, -1)(x)), "int8"),
        (layers.Rescaling(1 / 255), tfc.Scheme(activations=tfc.ActivationScheme(symmetric=True))),
    ],
)
def test_what_is_no_plain_rescaling_of_pixels_is_an_operator(rescale, config):
    plan = tfc.plan(model_of(rescale), config)
    assert not any("scale and zero point of" in entry.activations for entry in plan)
    has_reason = any("numbers of its own for each channel" in n for e in plan for n in e.notes)
    assert has_reason == (getattr(rescale, "name", "") == "own")


def test_a_cast_to_its_own_type_is_nothing(tmp_path):
    model = model_of(lambda x: keras.ops.cast(x, "float32") / 127.5 - 1)
    model = tfc.quantize(model, calibration_data=PIXELS)
    assert not model.plan.float_layers
    report = tfc.export_tflite(model, tmp_path / "m.tflite", verify_data=PIXELS)
    assert not report.float_tensors
    assert steps_off(tmp_path / "m.tflite", model, PIXELS) < 0.01


def test_a_rescaled_tensor_that_is_resampled_is_rounded_by_its_own_range(tmp_path):
    model = model_of(lambda x: layers.Resizing(4, 4)(layers.Rescaling(1 / 255)(x)))
    quantized = tfc.quantize(model, calibration_data=PIXELS)
    expected = model.predict(PIXELS, verbose=0)
    off = np.abs(quantized.predict(PIXELS, verbose=0) - expected).max()
    assert off < 0.02 * np.ptp(expected)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=PIXELS)
    assert report.agreement == 1


def test_a_damaged_entry_is_refused(int8_file):
    for content in (b'{"serving_default":{"x":[-1.0,0]}}', b"[]", b"\xff"):
        data = with_entry(int8_file, input_codes.ENTRY, content)
        with pytest.raises(ValueError, match="damaged"):
            tfc.Runner(data)
