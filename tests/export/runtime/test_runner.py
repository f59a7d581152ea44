import copy

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcompress.distillation import TFLiteTeacher
from tfcompress.export.runtime.codes import dequantize, quantize
from tfcompress.export.runtime.runner import Runner

SCALE = 0.1


def test_float_file_is_keras(float_file, small_model, images):
    expected = small_model.predict(images, verbose=0)
    outputs = Runner(float_file).predict(images)
    assert set(outputs) == {"logits", "embedding"}
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_int8_file_is_near_keras(int8_file, small_model, images):
    expected = small_model.predict(images, verbose=0)
    runner = Runner(int8_file)
    outputs = runner.predict(images)
    codes = runner.run_codes(images)
    for name, values in outputs.items():
        info = runner.outputs[name]
        assert np.abs(values - expected[name]).max() <= 3 * info.scale
        assert codes[name].dtype == np.int8
        assert codes[name].shape == expected[name].shape
        np.testing.assert_array_equal(values, dequantize(codes[name], info.scale, info.zero_point))


def test_details_go_by_the_signature_s_names(int8_file):
    runner = Runner(int8_file)
    assert runner.signature == "serving_default"
    assert runner.input_names == ("image",)
    assert set(runner.output_names) == {"logits", "embedding"}
    image = runner.inputs["image"]
    assert (image.shape, image.dtype, image.zero_point) == ((1, 8, 8, 1), np.int8, -128)
    assert image.scale == pytest.approx(1 / 255)
    assert image.is_quantized


def test_arrays_lists_dicts_and_codes_are_equal(int8_file, images):
    runner = Runner(int8_file)
    expected = runner.run_codes(images)
    codes = runner.quantize("image", images)
    assert codes.dtype == np.int8
    for inputs in ([images], {"image": images}, codes, {"image": codes.astype(np.int32)}):
        for name, values in runner.run_codes(inputs).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_batch_is_its_samples(int8_file, images):
    runner = Runner(int8_file)
    batch = runner.run_codes(images[:4])["logits"]
    single = [runner.run_codes(images[i : i + 1])["logits"] for i in range(4)]
    np.testing.assert_array_equal(batch, np.concatenate(single))
    assert runner.run_codes(images[:0])["logits"].shape == (0, 3)


def test_every_signature_runs(two_signatures_file, int8_file, images):
    with pytest.raises(ValueError, match=r"\['classify', 'embed'\].*Received: signature=None"):
        Runner(two_signatures_file)
    classify = Runner(two_signatures_file, signature="classify")
    embed = Runner(two_signatures_file, signature="embed")
    assert (classify.output_names, embed.output_names) == (("logits",), ("embedding",))
    alone = Runner(int8_file).run_codes(images)
    np.testing.assert_array_equal(classify.run_codes(images)["logits"], alone["logits"])
    x = Runner(int8_file).predict(images)["embedding"]
    expected = x * np.clip(x + 3, 0, 6) / 6
    np.testing.assert_allclose(
        embed.predict(images)["embedding"], expected, atol=2 * embed.outputs["embedding"].scale
    )
    assert (embed.time(runs=5) > 0).all()


def test_several_inputs(tokens_file):
    runner = Runner(tokens_file)
    tokens = np.array([[1, 2, 3], [9, 9, 9]])
    weight = np.array([[1.0, 0.5], [-1.0, 0.0]])
    table = np.arange(20).reshape(10, 2)
    expected = weight * table[tokens].sum(1)
    named = {"tokens": tokens, "weight": weight}
    np.testing.assert_allclose(runner.predict(named)["sum"], expected)
    ordered = [named[name] for name in runner.input_names]
    np.testing.assert_allclose(runner.predict(ordered)["sum"], expected)
    with pytest.raises(ValueError, match=r"Expected 2 inputs.*Received: 1"):
        runner.predict(weight)
    with pytest.raises(ValueError, match=r"\['tokens', 'weight'\].*Received: \['tokens'\]"):
        runner.predict({"tokens": tokens})
    with pytest.raises(ValueError, match=r"one batch size.*'tokens': 2, 'weight': 1"):
        runner.predict({"tokens": tokens, "weight": weight[:1]})
    with pytest.raises(ValueError, match="Expected integers for the input 'tokens'"):
        runner.predict({"tokens": tokens.astype(np.float32), "weight": weight})


def test_wrong_shapes_and_values(int8_file, images):
    runner = Runner(int8_file)
    with pytest.raises(ValueError, match=r"\('batch', 8, 8, 1\).*Received: shape \(8, 8, 1\)"):
        runner.predict(images[0])
    with pytest.raises(ValueError, match=r"codes in -128..127.*Received: uint8 from 0 to 255"):
        runner.run_codes((images * 255).astype(np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        runner.run_codes(np.full_like(images, np.nan))
    with pytest.raises(ValueError, match=r"input name among \['image'\].*'x'"):
        runner.quantize("x", images)


def test_wrong_files_and_options(flex_file, int8_file):
    with pytest.raises(RuntimeError, match=r"LiteRT refuses.*Select TensorFlow op"):
        Runner(flex_file)
    with pytest.raises(ValueError, match="num_threads=0"):
        Runner(int8_file, num_threads=0)
    with pytest.raises(ValueError, match=r"\['serving_default'\].*signature='other'"):
        Runner(int8_file, signature="other")


def test_an_output_that_no_operator_writes_is_damage(int8_file, images, tmp_path):
    """The runtime gives it no memory, and says so only when it is read."""
    model = schema.ModelT.InitFromPackedBuf(int8_file, 0)
    (graph,) = model.subgraphs
    graph.tensors.append(copy.deepcopy(graph.tensors[graph.outputs[0]]))
    graph.outputs = [len(graph.tensors) - 1, *graph.outputs[1:]]
    model.signatureDefs = []
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "damaged.tflite"
    path.write_bytes(builder.Output())
    message = "(?s)^Expected a .tflite that LiteRT can run.*null"
    with pytest.raises(ValueError, match=message):
        Runner(path).run_codes(images[:1])
    with pytest.raises(ValueError, match=message):
        TFLiteTeacher(path).predict(images[:1])


def test_threads_do_not_change_codes(int8_file, images):
    one, two = (Runner(int8_file, num_threads=n).run_codes(images) for n in (1, 2))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_time_is_in_milliseconds(int8_file):
    times = Runner(int8_file).time(runs=20, warmup=2)
    assert times.shape == (20,)
    assert 1e-4 < np.median(times) < 50


def test_quantize_rounds_half_to_even():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf, -np.inf])
    codes = quantize(x, 1.0, 3, np.dtype(np.int8))
    assert codes.tolist() == [3, 5, 5, 3, 1, 127, -128, 127, -128]


@given(st.floats(2.0**-20, 1024.0, width=32), st.integers(-128, 127))
def test_every_code_reproduces_itself(scale, zero_point):
    codes = np.arange(-128, 128).astype(np.int8)
    real = dequantize(codes, scale, zero_point)
    np.testing.assert_array_equal(quantize(real, scale, zero_point, np.dtype(np.int8)), codes)


@given(hnp.arrays(np.float32, 16, elements=st.floats(-12.5, 12.5, width=32)))
def test_the_error_is_half_a_step(x):
    codes = quantize(x, SCALE, -2, np.dtype(np.int8))
    inside = (codes > -128) & (codes < 127)
    error = np.abs(dequantize(codes, SCALE, -2) - x)
    assert (error[inside] <= SCALE / 2 + 1e-5).all()
