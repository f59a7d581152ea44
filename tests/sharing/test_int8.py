"""Codebooks in the int8 file: exact numbers of codes, and parity with the Keras model."""

import numpy as np
import pytest

from tfcompress.export.lowering.bake import bake
from tfcompress.export.tflite import export_tflite
from tfcompress.quantization import MeanStd
from tfcompress.quantization.calibration.equalization import equalize
from tfcompress.quantization.callbacks import QuantizationSchedule
from tfcompress.quantization.quantize import quantize
from tfcompress.quantization.schemes import Scheme, WeightScheme
from tfcompress.sharing import Clustering, cluster


def stored(path):
    """Shape → the distinct codes of every int8 constant of two or more axes in the file."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    found = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(tensor.shape) >= 2 and tensor.type == 9:
            codes = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape)
            found[tuple(tensor.shape)] = codes
    return found


@pytest.fixture(scope="module")
def exported(trained, digits, compiled, tmp_path_factory):
    """`(report, codes by shape, model)` of a model that was clustered, quantized and trained."""
    (x, y), _ = digits
    model = quantize(cluster(trained, 8, init="optimal"), calibration_data=x[:128])
    callbacks = [Clustering(5, end_step=15), QuantizationSchedule(0, 15, 15)]
    compiled(model).fit(x, y, batch_size=64, epochs=1, verbose=0, callbacks=callbacks)
    path = tmp_path_factory.mktemp("int8") / "model.tflite"
    return export_tflite(model, path, verify_data=x[:200]), stored(path), model


def test_k_codes_and_2k_minus_1_behind_negative_gamma(exported):
    report, codes, _ = exported
    assert np.unique(codes[24, 3, 3, 16]).size == 8
    assert np.unique(codes[10, 96 * 4]).size == 8
    # Some γ are negative, which turns the signs of their channels.
    first = codes[16, 3, 3, 1]
    assert 8 < np.unique(first).size <= 15
    assert np.unique(np.abs(first)).size <= 8
    assert {row.name: row.distinct for row in report.layers}["conv2"] == 8


def test_the_file_computes_what_keras_computes(exported, digits, accuracy):
    report, _, model = exported
    assert report.agreement >= 0.97
    assert not report.float_tensors
    assert not report.unverified
    assert accuracy(model, digits[1]) > 0.9


def test_the_file_holds_nothing_that_is_not_used(exported):
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(exported[0].path)
    holders = [*model.subgraphs[0].tensors, *model.metadata]
    used = {0} | {holder.buffer for holder in holders}
    assert used == set(range(len(model.buffers)))
    contents = [bytes(b.data) for b in model.buffers if b.data is not None and len(b.data)]
    assert len(set(contents)) == len(contents)


def test_batch_norm_scales_the_scales_alone(exported):
    report, codes, model = exported
    layer = model.get_layer("conv1")
    values, rounded = layer.transformed(training=False)
    scale = np.unique(np.asarray(rounded.scale))
    assert scale.size == 1
    expected = np.moveaxis(np.round(np.asarray(values["kernel"]) / scale), -1, 0)
    signs = np.sign(model.get_layer("norm").gamma.numpy()).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(codes[16, 3, 3, 1], expected * signs)
    rows = {row.name: row for row in report.layers}
    assert rows["conv1"].num_scales > 1
    assert rows["conv2"].num_scales == 1


def test_the_order_of_the_two_does_not_matter(trained, digits):
    x = digits[0][0][:64]
    first = quantize(cluster(trained, 8, init="optimal"), calibration_data=x)
    second = cluster(quantize(trained, calibration_data=x), 8, init="optimal")
    for name in ("conv1", "conv2", "logits"):
        one, other = (bake(model.get_layer(name))[2] for model in (first, second))
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.scale, other.scale)


def test_codebooks_per_channel_keep_a_scale_per_channel(trained):
    baked = bake(quantize(cluster(trained, 4, scope="channel")).get_layer("conv2"))[2]
    assert {np.unique(channel).size for channel in np.moveaxis(baked.codes, -1, 0)} <= {3, 4}
    assert np.unique(baked.scale).size == 24


def test_codes_of_one_codebook_per_channel_in_the_file(trained, digits, tmp_path):
    model = quantize(cluster(trained, 4, scope="channel"), calibration_data=digits[0][0][:64])
    export_tflite(model, tmp_path / "channel.tflite")
    codes = stored(tmp_path / "channel.tflite")
    for shape in ((16, 3, 3, 1), (24, 3, 3, 16), (10, 96 * 4)):
        counts = {np.unique(channel).size for channel in codes[shape]}
        assert max(counts) == 4
        # All channels together take other codes: each has its own scale and codebook.
        assert np.unique(codes[shape]).size > 4


def test_codes_of_one_codebook_for_the_model_in_the_file(trained, digits, tmp_path):
    # Behind a batch norm with negative γ codes change signs: `conv1` has one.
    model = quantize(
        cluster(trained, {"conv2": 6, "logits": 6}, scope="model"),
        calibration_data=digits[0][0][:64],
    )
    export_tflite(model, tmp_path / "model.tflite")
    codes = stored(tmp_path / "model.tflite")
    found = [np.unique(codes[shape]) for shape in ((24, 3, 3, 16), (10, 96 * 4))]
    assert [values.size for values in found] == [6, 6]
    values = [np.unique(bake(model.get_layer(n))[2].codes) for n in ("conv2", "logits")]
    for ours, theirs in zip(found, values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "weights",
    [WeightScheme(num_bits=4), WeightScheme(per_channel=False), WeightScheme(observer=MeanStd(3))],
)
def test_other_schemes_keep_the_codebook(trained, weights):
    model = quantize(cluster(trained, 6), Scheme(weights=weights))
    for name in ("conv2", "logits"):
        assert np.unique(bake(model.get_layer(name))[2].codes).size <= 6
    assert np.unique(np.abs(bake(model.get_layer("conv1"))[2].codes)).size <= 6


def test_equalization_leaves_codebooks_alone(trained, digits):
    x = digits[1][0][:20]
    clustered = cluster(trained, 8)
    np.testing.assert_allclose(
        equalize(clustered).predict(x, verbose=0), clustered.predict(x, verbose=0), atol=1e-4
    )
