"""Calls of every kind run as the plan says, and the file computes what the model computes.

Each call stands between two int8 operators. The plan says whether it runs in int8 or in float; the
runtime shows what the file has there, without any check of the package.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import tfcompress as tfc
from tests.export.test_float_islands import Doubled, File, Shuffled, spread

# The weights are spread on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:The ranges of")
_MOVES = {"QUANTIZE", "DEQUANTIZE", "RESHAPE", "PAD", "STRIDED_SLICE", "SLICE", "TRANSPOSE"}
_MOVES |= {"MAX_POOL_2D", "CONCATENATION", "PACK", "UNPACK", "SPLIT", "GATHER", "REDUCE_MAX"}
_KERNEL = np.random.default_rng(5).normal(0, 0.3, (3, 3, 6, 5)).astype(np.float32)


def rows(x):
    return layers.Reshape((16, 24))(x)


def pools(count):
    def call(x):
        for _ in range(count):
            x = layers.AveragePooling2D(3, 1, "same")(x)
        return x

    return call


# Name → call on an image (8, 8, 6) that a quantizer has rounded.
KINDS = {
    "abs": ops.abs,
    "adaptive_pool": lambda x: layers.AdaptiveAveragePooling2D(3)(x),
    "average_pool": lambda x: ops.average_pool(x, 2, 2),
    "channel_mean": lambda x: ops.mean(x, axis=-1),
    "clip": lambda x: ops.clip(x, 0.2, 0.9),
    "conv": lambda x: ops.conv(x, _KERNEL),
    "conv1d_transpose": lambda x: layers.Conv1DTranspose(5, 3, 2)(rows(x)),
    "custom": Shuffled(),
    "einsum_dense": lambda x: layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 5), bias_axes="d")(x),
    "exp": lambda x: ops.exp(-x),
    "group_norm": lambda x: layers.GroupNormalization(3)(x),
    "image_resize": lambda x: ops.image.resize(x, (5, 7)),
    "lambda": lambda x: layers.Lambda(lambda y: y * y + 0.5)(x),
    "layer_norm": lambda x: layers.LayerNormalization()(x),
    "lstm": lambda x: layers.LSTM(5, unroll=True)(layers.Reshape((4, 96))(x)),
    "matmul": lambda x: ops.matmul(rows(x), ops.transpose(rows(x), (0, 2, 1))),
    "maximum": lambda x: ops.maximum(x, 0.3),
    "minimum": lambda x: ops.minimum(x, 0.7),
    "attention": lambda x: layers.MultiHeadAttention(2, 4)(rows(x), rows(x)),
    "one_pool": pools(1),
    "three_pools": pools(3),
    "resizing": lambda x: layers.Resizing(5, 5)(x),
    "rms_norm": lambda x: layers.RMSNormalization()(x),
    "softsign": lambda x: layers.Activation("softsign")(x),
    "softmax_of_two_axes": lambda x: layers.Softmax(axis=[1, 2])(x),
    "spectral_norm": lambda x: layers.SpectralNormalization(layers.Conv2D(5, 3))(x),
    "square": ops.square,
    "subclass": Doubled(5, 3),
    "time_distributed": lambda x: layers.TimeDistributed(layers.Dense(5))(rows(x)),
    # Of a vector of zeros XNNPACK in float makes NaN, which no int8 form would.
    "unit_norm": lambda x: layers.UnitNormalization()(layers.Rescaling(1.0, 0.5)(x)),
    "where": lambda x: ops.where(x > 0.4, x, 0.1 * x),
}


def branches():
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(image)
    outputs, kinds = {}, {}
    seen = {operation.name for operation in keras.Model(image, x)._flatten_layers()}
    for name, call in KINDS.items():
        y = call(x)
        graph = keras.Model(image, y)
        kinds[name] = {op.name for op in graph.operations} - seen
        seen |= kinds[name]
        outputs[name] = layers.Dense(4, name=f"head_{name}")(layers.Flatten()(y))
    return keras.Model(image, outputs), kinds


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """`(plan, names of the layers of each kind, file, outputs of the file, of the model, step)`."""
    images = np.random.default_rng(0).normal(0, 1, (48, 8, 8, 4)).astype(np.float32)
    model, kinds = branches()
    spread(model)
    with pytest.warns(UserWarning, match="stay in float"):
        quantized = tfc.quantize(model, calibration_data=images)
    path = tmp_path_factory.mktemp("kinds") / "model.tflite"
    tfc.export_tflite(quantized, path, allow_float=True, verify_samples=0)
    runtime = Interpreter(model_content=path.read_bytes())
    runner = runtime.get_signature_runner()
    scale, zero_point = runner.get_input_details()["image"]["quantization"]
    codes = np.rint(images / np.float32(scale)) + zero_point
    codes = np.clip(codes, -128, 127).astype(np.int8)
    found = [runner(image=one[None]) for one in codes]
    details = runner.get_output_details()
    results = {}
    for name in KINDS:
        step, zero = details[name]["quantization"]
        values = np.concatenate([one[name] for one in found]).astype(np.float64)
        results[name] = (values - zero) * step, step
    expected = quantized.predict(images, verbose=0)
    return quantized.plan, kinds, File(path.read_bytes()), details, results, expected


def arithmetic_before(file, tensor):
    """Types of what the operators give between the stem and the head that gives a tensor."""
    producers = {int(i): op for op in file.ops for i in op["outputs"]}
    pending, seen, found = [int(i) for i in producers[tensor]["inputs"]], set(), []
    while pending:
        index = pending.pop()
        op = producers.get(index)
        if op is None or index in seen or (op["op_name"] == "CONV_2D" and reads_input(file, op)):
            continue
        seen.add(index)
        pending += [int(i) for i in op["inputs"] if i >= 0]
        if op["op_name"] not in _MOVES:
            found.append((op["op_name"], np.dtype(file.tensors[index]["dtype"]).name))
    return found


def reads_input(file, op):
    """Whether it is the stem: the convolution of the image."""
    return not any(op["inputs"][0] in other["outputs"] for other in file.ops)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_runs_as_planned_and_agrees(kind, case):
    plan, kinds, file, details, results, expected = case
    entries = [entry for entry in plan if entry.name.split("/")[0] in kinds[kind]]
    in_float = [entry for entry in entries if entry.is_float and entry.float_reason]
    types = arithmetic_before(file, tensor_of(file, details[kind]))
    assert not in_float or all(entry.name in plan.float_layers for entry in in_float)
    if not in_float:
        assert all(dtype != "float32" for _, dtype in types), types
    elif len(in_float) == len(entries) and all(len(entry.parts) == 1 for entry in in_float):
        assert {dtype for _, dtype in types} >= {"float32"}, types
        assert not [op for op, dtype in types if dtype == "int8"], types
    else:
        assert "float32" in {dtype for _, dtype in types}, types
    outputs, step = results[kind]
    assert np.unique(expected[kind]).size > 16
    assert np.mean(np.abs(outputs - expected[kind]) < step / 2) >= 0.98


def tensor_of(file, detail):
    """The tensor of an output in the runtime without delegates, where indices may differ."""
    return next(i for i, d in file.tensors.items() if d["name"] == detail["name"])
