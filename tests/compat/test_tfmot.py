"""Models of tfmot 0.8 and of tf_keras become models of this package, with the same outputs."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfcompress as tfc
from tests.pages import ROOT
from tfcompress.compat.tfmot import migrate
from tfcompress.compat.tfmot.configs import layer_from
from tfcompress.compat.tfmot.reading import Description
from tfcompress.model.compressed import is_compressed
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress_cli.models import trained_model

if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("tfmot is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that `tfmot_models` writes, in a process of its own."""
    path = tmp_path_factory.mktemp("tfmot")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.compat.tfmot_models", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def outputs(folder):
    with np.load(folder / "outputs.npz") as file:
        return {name: file[name] for name in file.files}


def migrated(folder, name, edit=lambda description: description, **options):
    """A model by the description that the process of tfmot has made of it."""
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "read", lambda model: Description(edit(content["model"]), arrays))
        return tfc.from_tfmot(name, **options)


def predicted(model, x):
    found = model(x, training=False)
    return [y.numpy() for y in (found if isinstance(found, list) else [found])]


def steps_off(model, name, found, expected):
    """Differences in steps of the output of a layer of a quantized model."""
    quantizers = [q for q in model.layers if isinstance(q, FakeQuantize)]
    (scale,) = [float(q.scale) for q in quantizers if q.source == name]
    return np.abs(found - expected) / scale


def in_float_arithmetic(model, x):
    """The outputs with biases and sums as tfmot has them, which a file rounds to int32."""
    schedule = tfc.callbacks.QuantizationSchedule(freeze_ranges_step=0, freeze_batch_norm_step=0)
    schedule.set_model(model)
    schedule.update(0)
    found = model(x, training=True)
    return [y.numpy() for y in (found if isinstance(found, list) else [found])]


@pytest.fixture(scope="module")
def quantized(folder):
    return tfc.from_tfmot(folder / "quantized.h5")


def test_outputs_of_a_quantized_model(quantized, outputs):
    x = outputs["x"]
    copy = keras.models.clone_model(quantized)
    copy.set_weights(quantized.get_weights())
    scores, classes, largest = in_float_arithmetic(copy, x)
    off = steps_off(quantized, "scores", scores, outputs["quantized_0"])
    # A value between two codes may fall to either side, where float sums differ in the last bit.
    assert np.mean(off < 0.01) > 0.9
    assert off.max() < 4
    # tfmot leaves the output of a softmax unrounded.
    off = steps_off(quantized, "classes_activation", classes, outputs["quantized_1"])
    assert off.max() <= 1.5
    leaky = [q for q in quantized.layers if getattr(q, "source", None) == "leaky"][-1]
    assert np.abs(largest - outputs["quantized_2"]).max() <= 2.01 * float(leaky.scale)
    # What the file rounds besides is small, but deep in a net not nothing.
    scores, classes, _ = predicted(quantized, x)
    assert np.mean(steps_off(quantized, "scores", scores, outputs["quantized_0"])) < 2
    assert np.mean(np.argmax(classes, 1) == np.argmax(outputs["quantized_1"], 1)) > 0.9


def test_ranges_are_those_of_tfmot(quantized, folder):
    import h5py

    with h5py.File(folder / "quantized.h5") as file:
        group = file["model_weights/quant_left/quant_left"]
        low, high = (float(group[f"post_activation_{end}:0"][()]) for end in ("min", "max"))
        limits = group["kernel_max:0"][()]
    (left,) = [q for q in quantized.layers if getattr(q, "source", None) == "left"]
    np.testing.assert_allclose(float(left.scale), (high - low) / 255, rtol=1e-6)
    kernel = quantized.get_layer("left").effective_weights()["kernel"].numpy()
    codes = kernel / (limits / 127)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)


def test_a_quantized_model_is_exported(quantized, outputs, tmp_path):
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=outputs["x"][:32])
    assert not report.float_tensors
    assert report.agreement > 0.99
    run = Interpreter(str(tmp_path / "m.tflite"))
    run.allocate_tensors()
    given = run.get_input_details()[0]
    (scores,) = [q for q in quantized.layers if getattr(q, "source", None) == "scores"]
    details = run.get_output_details()
    (gives,) = [d for d in details if np.isclose(d["quantization"][0], float(scores.scale))]
    scale, zero_point = given["quantization"]
    found = []
    for x in outputs["x"][:16]:
        codes = np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8)
        run.set_tensor(given["index"], codes[None])
        run.invoke()
        found.append(run.get_tensor(gives["index"])[0])
    scale, zero_point = gives["quantization"]
    found = (np.array(found, np.float32) - zero_point) * np.float32(scale)
    off = np.abs(found - predicted(quantized, outputs["x"][:16])[0]) / scale
    assert off.max() <= 1.01
    assert np.mean(np.abs(found - outputs["quantized_0"][:16]) / scale) < 2


def test_a_quantized_model_trains_on_and_loads(quantized, outputs, tmp_path):
    copy = keras.models.clone_model(quantized)
    copy.set_weights(quantized.get_weights())
    copy.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    x = outputs["x"]
    np.testing.assert_array_equal(predicted(copy, x)[0], predicted(quantized, x)[0])
    copy.compile("adam", "mse")
    copy.fit(x, [np.ones((len(x), n), "float32") for n in (5, 5, 6)], verbose=0)
    assert np.isfinite(predicted(copy, x)[0]).all()


def test_a_partly_quantized_model(folder, outputs):
    x = outputs["x"]
    model = migrated(folder, "annotated")
    assert not is_compressed(model.get_layer("float_conv"))
    (found,) = in_float_arithmetic(model, x)
    off = steps_off(model, "int8_dense", found, outputs["annotated_0"])
    assert np.mean(off < 0.01) > 0.9
    assert off.max() <= 1.01


def test_a_range_that_tfmot_does_not_have(folder, outputs):
    def without(description):
        description["layers"]["quant_float_conv"]["activations"] = []
        return description

    with pytest.raises(ValueError, match="calibration_data"):
        migrated(folder, "annotated", without)
    model = migrated(folder, "annotated", without, calibration_data=outputs["x"])
    assert predicted(model, outputs["x"])[0].shape == (48, 5)


# The pruned one is described by its SavedModel.
@pytest.mark.parametrize(
    "name",
    [
        *("pruned", "pruned_stripped", "plain"),
        *("clustered", "clustered_stripped", "clustered_sparse"),
    ],
)
def test_outputs_of_float_models(name, folder, outputs):
    for i, found in enumerate(predicted(migrated(folder, name), outputs["x"])):
        np.testing.assert_allclose(found, outputs[f"{name}_{i}"], atol=2e-5)


def test_a_live_model_and_its_file(quantized, outputs):
    # The live one was migrated where `tf.keras` is the legacy Keras.
    np.testing.assert_allclose(predicted(quantized, outputs["x"])[0], outputs["live"], atol=1e-6)
    assert tf.keras.__version__.startswith("3.")


def test_zeros_stay_in_training_and_in_int8(folder, outputs):
    x = outputs["x"]
    model = migrated(folder, "pruned")
    before = {n: np.asarray(v) == 0 for n, v in kernels(model)}
    assert all(0.45 < zero.mean() < 0.55 for zero in before.values())
    assert len(before) == 4
    model.compile("sgd", "mse")
    model.fit(x, np.ones((len(x), 5), "float32"), verbose=0)
    assert all((np.asarray(v)[before[n]] == 0).all() for n, v in kernels(model))
    assert len(kernels(tfc.quantize(model, calibration_data=x))) >= 3


def kernels(model):
    return [
        (f"{layer.name}/{name}", value)
        for layer in model.layers
        if is_compressed(layer)
        for name, value in layer.effective_weights().items()
        if "kernel" in name
    ]


def test_codebooks_are_kept(folder, outputs):
    x = outputs["x"]
    model = migrated(folder, "clustered")
    assert all(np.unique(v).size <= 8 for _, v in kernels(model))
    model.compile("sgd", "mse")
    model.fit(x, np.ones((len(x), 5), "float32"), verbose=0)
    assert all(np.unique(v).size <= 8 for _, v in kernels(model))
    sparse = dict(kernels(migrated(folder, "clustered_sparse")))["conv/kernel"].numpy()
    assert np.mean(sparse == 0) > 0.1
    assert all(np.unique(sparse[..., c]).size <= 8 for c in range(8))


def test_what_keras_3_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ThresholdedReLU"):
        layer_from("ThresholdedReLU", {"name": "t", "theta": 1.0})
    with pytest.raises(ValueError, match="groups=2"):
        layer_from("DepthwiseConv2D", {"name": "d", "kernel_size": 3, "groups": 2})
    with pytest.raises(ValueError, match="hard_sigmoid"):
        layer_from("Activation", {"name": "a", "activation": "hard_sigmoid"})
    with pytest.raises(ValueError, match="missing"):
        tfc.from_tfmot(tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_bytes(json.dumps({}).encode())
    with pytest.raises(ValueError, match=r"bad\.h5"):
        tfc.from_tfmot(tmp_path / "bad.h5")
    with pytest.raises(TypeError, match="no migration"):
        tfc.from_tfmot(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))


def test_a_slash_in_a_name_becomes_an_underscore():
    layer = layer_from("Dense", {"name": "block/dense", "units": 2})
    assert layer.name == "block_dense"


def test_the_command_line_takes_a_saved_model(folder, outputs):
    model = trained_model(str(folder / "pruned"))
    assert np.abs(predicted(model, outputs["x"])[0] - outputs["pruned_0"]).max() < 2e-5
