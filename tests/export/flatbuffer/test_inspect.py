import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.tools import flatbuffer_utils
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.unpack import unpack
from tfcompress.export.runtime.delegation import delegation, ops_outside

CONV_NET = {"FULLY_CONNECTED": 2, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "RESHAPE": 1}


def test_int8_file(int8_file):
    summary = inspect_tflite(int8_file)
    assert summary.num_bytes == len(int8_file)
    assert summary.gzip_bytes == gzip_size(int8_file)
    assert summary.op_counts == CONV_NET
    assert summary.float_tensors == ()
    assert summary.flex_ops == ()
    assert summary.num_subgraphs == 1
    assert tuple(map(int, summary.min_runtime_version.split("."))) >= (1, 5, 0)


def test_the_same_from_path_and_bytes(int8_file, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(int8_file)
    assert inspect_tflite(path) == inspect_tflite(int8_file)


def test_signature(int8_file):
    (signature,) = inspect_tflite(int8_file).signatures
    assert signature.key == "serving_default"
    assert set(signature.inputs) == {"image"}
    assert set(signature.outputs) == {"logits", "embedding"}
    image = signature.inputs["image"]
    assert (image.dtype, image.shape, image.is_constant) == ("int8", (1, 8, 8, 1), False)
    # Images in 0..1 on 256 codes.
    np.testing.assert_allclose(image.scales, [1 / 255], rtol=1e-6)
    assert image.zero_points == (-128,)
    assert image.quantized_axis is None
    assert signature.outputs["logits"].shape == (1, 3)


def test_constants_agree_with_keras(int8_file, small_model):
    summary = inspect_tflite(int8_file)
    by_shape = {tensor.shape: tensor for tensor in summary.constants if tensor.dtype == "int8"}
    assert set(by_shape) == {(4, 3, 3, 1), (1, 3, 3, 4), (3, 256), (2, 256)}
    kernel = small_model.get_layer("logits").kernel.numpy()
    dense = by_shape[3, 256]
    np.testing.assert_allclose(dense.scales, np.abs(kernel).max(0) / 127, rtol=1e-5)
    codes = np.rint(kernel / np.float32(dense.scales))
    assert dense.non_zeros == np.count_nonzero(codes)
    assert dense.num_distinct == np.unique(codes).size
    assert dense.sparsity == pytest.approx((codes == 0).mean())
    assert (dense.num_bytes, dense.size, dense.quantized_axis) == (768, 768, 0)
    assert by_shape[1, 3, 3, 4].quantized_axis == 3


def test_float_file(float_file, small_model):
    summary = inspect_tflite(float_file)
    assert summary.op_counts == CONV_NET
    weights = sum(v.numpy().nbytes for v in small_model.weights)
    floats = [tensor for tensor in summary.float_tensors if tensor.is_constant]
    # All but the zero bias of one head, which the converter drops.
    assert sum(tensor.num_bytes for tensor in floats) == weights - 8
    assert len(summary.float_tensors) == len([t for t in summary.tensors if t.dtype == "float32"])


def test_int4_is_unpacked(int4_file, int4_weights):
    summary = inspect_tflite(int4_file)
    kernel, matrix = int4_weights
    conv, dense = (t for t in summary.constants if t.dtype == "int4")
    assert (conv.shape, dense.shape) == ((5, 3, 3, 1), (3, 320))
    # 45 values in 23 bytes: the last half byte is padding, and no value.
    assert (conv.num_bytes, dense.num_bytes) == (23, 480)
    np.testing.assert_allclose(conv.scales, np.abs(kernel).max((0, 1, 2)) / 7, rtol=1e-5)
    codes = np.rint(kernel / np.float32(conv.scales))
    assert conv.non_zeros == np.count_nonzero(codes)
    codes = np.clip(np.rint(matrix * 2), -7, 7)
    assert dense.num_distinct == np.unique(codes).size
    assert dense.non_zeros == pytest.approx(np.count_nonzero(codes), abs=2)
    assert dense.sparsity > 0.3


def test_unused_floats_do_not_count(int8_file):
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(int8_file))
    graph = model.subgraphs[0]
    extra = flatbuffer_utils.TensorT(shape=[3], type=flatbuffer_utils.TensorType.FLOAT32)
    extra.name = b"left_over"
    graph.tensors.append(extra)
    summary = inspect_tflite(flatbuffer_utils.convert_object_to_bytearray(model))
    assert summary.tensors[-1].name == "left_over"
    assert not summary.tensors[-1].is_used
    assert summary.float_tensors == ()
    graph.operators[0].inputs = [*graph.operators[0].inputs, len(graph.tensors) - 1]
    summary = inspect_tflite(flatbuffer_utils.convert_object_to_bytearray(model))
    assert [tensor.name for tensor in summary.float_tensors] == ["left_over"]


def test_zeros_are_counted_from_the_zero_point(int8_file):
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(int8_file))
    graph = model.subgraphs[0]
    weights = next(t for t in graph.tensors if list(t.shape) == [2, 256])
    codes = np.full((2, 256), 5, np.int8)
    codes[0, :100] = 0
    model.buffers[weights.buffer].data = codes.view(np.uint8).reshape(-1)
    weights.quantization.zeroPoint = [5, 0]
    summary = inspect_tflite(flatbuffer_utils.convert_object_to_bytearray(model))
    tensor = next(t for t in summary.constants if t.shape == (2, 256))
    assert tensor.non_zeros == 100 + 256


def test_layer_bytes_cover_every_constant_once(two_signatures_file):
    summary = inspect_tflite(two_signatures_file)
    buffers = {tensor.buffer: tensor.num_bytes for tensor in summary.constants}
    assert sum(summary.layer_bytes.values()) == sum(buffers.values())
    assert next(iter(summary.layer_bytes)).endswith("/logits_1")


def test_shared_buffers(two_signatures_file, int8_file):
    assert inspect_tflite(int8_file).shared_buffers == {}
    summary = inspect_tflite(two_signatures_file)
    assert summary.num_subgraphs == 2
    assert {s.key: set(s.outputs) for s in summary.signatures} == {
        "classify": {"logits"},
        "embed": {"embedding"},
    }
    shapes = {tensors[0].shape for tensors in summary.shared_buffers.values()}
    assert {(4, 3, 3, 1), (1, 3, 3, 4)} <= shapes
    for tensors in summary.shared_buffers.values():
        assert {tensor.subgraph for tensor in tensors} == {0, 1}


def test_flex_ops_are_named(flex_file):
    assert inspect_tflite(flex_file).flex_ops == ("FlexMatrixInverse",)
    with pytest.raises(RuntimeError, match=r"FlexMatrixInverse|Select TensorFlow op"):
        delegation(flex_file)


def test_open_dimensions(small_model):
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec((None, 4), tf.float32))]
    )
    summary = inspect_tflite(converter.convert())
    tensor = summary.tensor(0)
    assert tensor.shape == (-1, 4)
    assert tensor.size is None


def test_tensor_lookup(int8_file):
    summary = inspect_tflite(int8_file)
    op = summary.ops[0]
    assert summary.tensor(op.inputs[0]).name.startswith("serving_default_image")
    with pytest.raises(ValueError, match="index=99"):
        summary.tensor(99)


def test_json_and_table(two_signatures_file):
    summary = inspect_tflite(two_signatures_file)
    content = json.loads(json.dumps(summary.as_dict()))
    assert content["op_counts"] == summary.op_counts
    assert content["tensors"][3]["sparsity"] == summary.tensors[3].sparsity
    table = str(summary)
    for text in ("DEPTHWISE_CONV_2D", "classify", "embedding", "logits", f"{summary.num_bytes:,}"):
        assert text in table


def test_reads_without_tensorflow_or_keras():
    code = """
import sys, types
# The packages' own __init__ may offer more than these modules need.
for name in ("tfcompress", "tfcompress.export"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name.replace(".", "/")]
import tfcompress.export.bundle.files
import tfcompress.export.flatbuffer.inspect
import tfcompress.export.runtime.latency
print([name for name in ("tensorflow", "keras", "rich") if name in sys.modules])
"""
    root = pathlib.Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == "[]"


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_unpack_int4_undoes_packing(values):
    padded = np.array(values + [0] * (len(values) % 2), np.int8)
    packed = ((padded[0::2] & 15) | ((padded[1::2] & 15) << 4)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(packed, "int4", len(values)), values)
    unsigned = unpack(packed, "uint4", len(values))
    np.testing.assert_array_equal(unsigned, np.array(values) % 16)


def test_unpack_other_types():
    assert unpack(b"\xe4", "int2", 4).tolist() == [0, 1, -2, -1]
    assert unpack(np.float32([1.5, -2]).tobytes(), "float32", 2).tolist() == [1.5, -2]
    assert unpack(b"\x80\x3f", "bfloat16", 1).tolist() == [1.0]
    assert unpack(b"abc", "string", 1) is None
    assert unpack(b"abc", "type_99", 1) is None


def test_whole_graph_on_xnnpack(int8_file, float_file):
    for file in (int8_file, float_file):
        found = delegation(file)
        assert (found.num_partitions, found.ops_outside) == (1, ())
        assert found.is_fully_accelerated


def test_ops_outside_the_delegate_are_named(split_file, int4_file):
    found = delegation(split_file)
    assert (found.num_partitions, found.ops_outside) == (2, ("HARD_SWISH",))
    assert not found.is_fully_accelerated
    # Convolutions with INT4 weights stay outside, dense layers do not.
    found = delegation(int4_file)
    assert (found.num_partitions, found.ops_outside) == (1, ("CONV_2D",))
    assert not found.is_fully_accelerated


def test_every_signature_is_judged(two_signatures_file):
    found = delegation(two_signatures_file)
    assert found.num_partitions == 2
    assert found.ops_outside == ("HARD_SWISH",)
    assert not found.is_fully_accelerated


def test_the_private_interface_still_shows_the_delegate(int8_file):
    """If this fails, the runtime has changed: see `tfcompress.export.runtime.delegation`."""
    from tfcompress.export.runtime.delegation import _nodes

    nodes = _nodes(int8_file)
    assert [node["op_name"] for node in nodes].count("DELEGATE") == 1
    assert nodes[-1]["op_name"] == "DELEGATE"
    assert {"op_name", "inputs", "outputs"} <= set(nodes[0])
    names = [node["op_name"] for node in nodes[:-1]]
    assert sorted(names) == sorted(op.name for op in inspect_tflite(int8_file).ops)


def test_ops_outside_walks_back_to_the_border():
    def op(name, inputs, outputs):
        return {"op_name": name, "inputs": inputs, "outputs": outputs}

    ops = [op("A", [0], [1]), op("B", [1], [2]), op("C", [2], [3]), op("D", [3, 1], [4])]
    assert ops_outside(ops, []) == ["A", "B", "C", "D"]
    assert ops_outside(ops, [op("DELEGATE", [0], [4])]) == []
    partitions = [op("DELEGATE", [0], [1, 2]), op("DELEGATE", [1, 3], [4])]
    assert ops_outside(ops, partitions) == ["C"]
