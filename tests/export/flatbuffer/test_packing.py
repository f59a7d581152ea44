"""Equal vectors of a file stored once: the same model in fewer bytes."""

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.packing import packed_again
from tfcompress.files.flatbuffer import check_tflite


def _tree(data):
    """What a file says, as plain values."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return (
            {k: plain(v) for k, v in vars(value).items()} if hasattr(value, "__dict__") else value
        )

    return plain(flatbuffer_utils.convert_bytearray_to_object(bytearray(data)))


def _outputs(data, images):
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None].astype(given["dtype"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(found["index"]))
    return np.concatenate(outputs)


def _saving(data):
    """`(bytes of a file with every vector apart, bytes of zero points that repeat others)`."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    points = [
        tensor.quantization.zeroPoint
        for tensor in model.subgraphs[0].tensors
        if tensor.quantization is not None and tensor.quantization.zeroPoint is not None
    ]
    once = {values.tobytes(): values.nbytes for values in points}
    repeated = sum(values.nbytes for values in points) - sum(once.values())
    return len(flatbuffer_utils.convert_object_to_bytearray(model)), repeated


def test_the_same_file_in_fewer_bytes(int8_file, images):
    apart = bytes(int8_file)
    shared = packed_again(apart)
    size, repeated = _saving(apart)
    assert repeated > 0
    assert len(shared) <= size - repeated
    assert _tree(shared) == _tree(apart)
    check_tflite(shared)
    np.testing.assert_array_equal(_outputs(shared, images[:8]), _outputs(apart, images[:8]))


def test_an_export_shares_its_vectors(small_model, images, tmp_path):
    quantized = tfc.quantize(small_model, calibration_data=images)
    tfc.export_tflite(quantized, tmp_path / "small.tflite", verify_data=images[:8])
    data = (tmp_path / "small.tflite").read_bytes()
    size, repeated = _saving(data)
    assert repeated > 0
    assert len(data) <= size - repeated


def test_whole_numbers_that_are_computed_or_given_keep_their_names(tmp_path, converter):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 8, name="embedding")(tokens)
    x = layers.Conv1D(8, 3, padding="same", name="conv")(x)
    model = keras.Model(tokens, {"best": keras.ops.argmax(x, axis=-1)})
    data = np.random.default_rng(0).integers(0, 10, (8, 6)).astype("int32")
    quantized = tfc.quantize(model, calibration_data=data)
    path = tmp_path / "model.tflite"
    tfc.export_tflite(quantized, path, verify_data=data)
    interpreter = Interpreter(str(path))
    details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert all(detail["name"] for detail in details)
    constants = flatbuffer_utils.read_model(str(path))
    (graph,) = constants.subgraphs
    shared = [t for t in graph.tensors if not t.name]
    assert all(constants.buffers[t.buffer].data is not None for t in shared)
