"""The structural check of `.tflite` files: against LiteRT's schema, and against crafted files."""

import functools
import pathlib
import re

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.files import flatbuffer
from tfcompress.files.flatbuffer import check_tflite


@functools.cache
def source_of(name):
    """The source of a class of LiteRT's generated reader."""
    text = pathlib.Path(schema.__file__).read_text()
    start = text.index(f"\nclass {name}(object):\n    __slots__")
    return text[start : text.index("\ndef ", start)]


_WIDTHS = {"Bool": 1, "Int8": 1, "Uint8": 1, "Int32": 4, "Uint32": 4, "Float32": 4}
_WIDTHS |= {"Int64": 8, "Uint64": 8}


def small_model():
    """A convolution-like operator: one input, one constant of two channels, one output."""
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [schema.OperatorCodeT(deprecatedBuiltinCode=3, builtinCode=3, version=1)]
    weights = schema.BufferT()
    weights.data = np.arange(8, dtype=np.uint8)
    model.buffers = [schema.BufferT(), weights]
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.array([0.5, 0.25], np.float32)
    quantization.zeroPoint = np.zeros(2, np.int64)
    tensors = [
        schema.TensorT(name=b"x", shape=np.array([1, 4], np.int32), buffer=0),
        schema.TensorT(
            name=b"w", shape=np.array([2, 4], np.int32), buffer=1, quantization=quantization
        ),
        schema.TensorT(name=b"y", shape=np.array([1, 2], np.int32), buffer=0),
    ]
    op = schema.OperatorT(opcodeIndex=0)
    op.inputs, op.outputs = np.array([0, 1, -1], np.int32), np.array([2], np.int32)
    graph = schema.SubGraphT(name=b"main", tensors=tensors, operators=[op])
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([2], np.int32)
    model.subgraphs = [graph]
    signature = schema.SignatureDefT(signatureKey=b"serving_default", subgraphIndex=0)
    signature.inputs = [schema.TensorMapT(name=b"x", tensorIndex=0)]
    signature.outputs = [schema.TensorMapT(name=b"y", tensorIndex=2)]
    model.signatureDefs = [signature]
    return model


def packed(model):
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


@pytest.mark.parametrize("name", sorted(set(flatbuffer._TABLES) - {"union"}))
def test_the_tables_are_those_of_the_schema(name):
    """Every field of the schema is known, with its kind and width."""
    accessors = re.findall(
        r"    def (\w+)\(self(?:, j)?\):\n.*?Offset\((\d+)\)\)\n(.*?)(?=\n    # |\Z)",
        source_of(name),
        re.DOTALL,
    )
    found = {}
    for method, slot, body in accessors:
        if method.endswith(("AsNumpy", "Length", "IsNone")) or int(slot) in found:
            continue
        inner = re.search(r"obj = (\w+)\(", body)
        number = re.search(r"number_types\.(\w+)Flags, ", body)
        if inner and inner[1] != "Table":
            kind = inner[1]
        elif inner:
            kind = "union"
        else:
            kind = "text" if ".String(" in body else _WIDTHS[number[1]]
        found[int(slot)] = [kind] if "Vector(o)" in body else kind
    ours = {}
    for slot, what in flatbuffer._TABLES[name].items():
        inner = what.strip("[]")
        kind = flatbuffer._SIZES.get(inner, inner)
        ours[slot] = [kind] if what[0] == "[" else kind
    # Groups of buffers in other files, which no reader of ours follows.
    found = {
        s: k for s, k in found.items() if k not in (["ExternalBufferGroup"], ["ExternalBuffer"])
    }
    assert ours == found


def test_a_sound_file_is_accepted():
    check_tflite(packed(small_model()))


def _set(path, value):
    def change(model):
        *parents, last = path
        target = model
        for step in parents:
            target = target[step] if isinstance(step, int) else getattr(target, step)
        if isinstance(last, int):
            target[last] = value
        else:
            setattr(target, last, value)

    return change


_GRAPH = ("subgraphs", 0)
_WEIGHTS = (*_GRAPH, "tensors", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(("subgraphs",), []), "no graph"),
        (_set((*_WEIGHTS, "buffer"), 7), "tensor refers to a buffer"),
        (_set((*_GRAPH, "operators", 0, "opcodeIndex"), 1), "operator refers to a code"),
        (_set((*_GRAPH, "operators", 0, "inputs"), [0, 9]), "operator refers to a tensor"),
        (_set((*_GRAPH, "operators", 0, "outputs"), [-1]), "operator refers to a tensor"),
        (_set((*_GRAPH, "inputs"), [3]), "graph refers to a tensor"),
        (_set(("signatureDefs", 0, "subgraphIndex"), 1), "signature refers to a graph"),
        (_set(("signatureDefs", 0, "inputs", 0, "tensorIndex"), 3), "signature refers to a tensor"),
        (_set(("metadata",), [schema.MetadataT(name=b"a", buffer=2)]), "metadata refer"),
        (_set((*_WEIGHTS, "shape"), [-3, 4]), "negative size"),
        (_set((*_WEIGHTS, "shape"), [1] * 65), "64 dimensions"),
        (_set((*_WEIGHTS, "quantization", "zeroPoint"), [0, 0, 0]), "numbers of scales"),
        (_set((*_WEIGHTS, "quantization", "quantizedDimension"), 2), "that it has not"),
        (_set(("buffers", 1), schema.BufferT(offset=8, size=10**6)), "values of a tensor"),
    ],
)
def test_indices_and_sizes_that_cannot_be(change, message):
    model = small_model()
    change(model)
    with pytest.raises(ValueError, match=rf"whole TFLite.*{message}.*truncated or damaged"):
        check_tflite(packed(model), "'a.tflite'")


def test_tables_that_are_referred_to_again_and_again():
    """Few bytes, of which a reader would make a million objects."""
    builder = flatbuffers.Builder()
    schema.TensorStart(builder)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, 1000)
    for _ in range(1000):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1000)
    for _ in range(1000):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(ValueError, match="more tables are referred to"):
        check_tflite(bytes(builder.Output()))


def test_truncations_and_flips_end_in_one_kind_of_error():
    """What is accepted can be read by LiteRT's own reader, within the file."""
    data = packed(small_model())
    rng = np.random.default_rng(0)
    damaged = [data[:end] for end in range(len(data))]
    for position in rng.integers(0, 8 * len(data), 4000):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    accepted, messages = 0, set()
    for one in damaged:
        try:
            check_tflite(one)
        except ValueError as error:
            messages.add(str(error))
            continue
        accepted += 1
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(one), 0))
    assert 0 < accepted < len(damaged) - len(data)
    assert all(m.startswith("Expected") and "Received: bytes of" in m for m in messages)
