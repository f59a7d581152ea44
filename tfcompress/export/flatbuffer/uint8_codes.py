"""uint8 codes as inputs and outputs, for apps that feed pixels as they are and for MediaPipe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.editing import add_tensor, opcode_index, parameters, quantization
from tfcompress.export.flatbuffer.packing import packed

_INT8, _UINT8 = schema.TensorType.INT8, schema.TensorType.UINT8


def with_uint8_inputs(data: bytes, only: Mapping[str, Collection[str]] | None = None) -> bytes:
    """A file whose int8 inputs are uint8, of the same scale and a zero point that is 128 more.

    A QUANTIZE takes 128 off each code, which is exact.

    Args:
        data: A `.tflite`.
        only: Signature → names of the inputs that become uint8; all of them by default.

    Raises:
        ValueError: It has no int8 input.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    changed = 0
    for number, graph in enumerate(model.subgraphs):
        signatures = [s for s in model.signatureDefs or () if s.subgraphIndex == number]
        added = []
        for index in [int(i) for i in graph.inputs]:
            if only is not None and not _is_among(signatures, index, only):
                continue
            given = _uint8_copy(model, graph, index)
            if given is None:
                continue
            added.append(_quantize(model, given, index))
            graph.inputs = [given if int(i) == index else int(i) for i in graph.inputs]
            _redirect((e for s in signatures for e in s.inputs), index, given)
        graph.operators = [*added, *(graph.operators or ())]
        changed += len(added)
    _check_changed(changed, "input")
    return packed(model)


def with_uint8_outputs(data: bytes) -> bytes:
    """A file whose int8 outputs are uint8, likewise.

    Args:
        data: A `.tflite`.

    Raises:
        ValueError: It has no int8 output.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    changed = 0
    for number, graph in enumerate(model.subgraphs):
        signatures = [s for s in model.signatureDefs or () if s.subgraphIndex == number]
        for index in dict.fromkeys(int(i) for i in graph.outputs):
            gives = _uint8_copy(model, graph, index)
            if gives is None:
                continue
            graph.operators = [*(graph.operators or ()), _quantize(model, index, gives)]
            graph.outputs = [gives if int(i) == index else int(i) for i in graph.outputs]
            _redirect((e for s in signatures for e in s.outputs), index, gives)
            changed += 1
    _check_changed(changed, "output")
    return packed(model)


def _uint8_copy(model: schema.ModelT, graph: schema.SubGraphT, index: int) -> int | None:
    """A uint8 tensor that takes the name of an int8 one; `None` where that is not int8."""
    tensor = graph.tensors[index]
    grid = parameters(tensor)
    if tensor.type != _INT8 or grid is None:
        return None
    copy = add_tensor(
        model, graph, tensor, _UINT8, quantization=quantization(grid[0], grid[1] + 128)
    )
    tensor.name += b"_int8"
    return copy


def _quantize(model: schema.ModelT, given: int, gives: int) -> schema.OperatorT:
    op = schema.OperatorT()
    op.opcodeIndex = opcode_index(model, schema.BuiltinOperator.QUANTIZE, 2)
    op.inputs, op.outputs = [given], [gives]
    op.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
    op.builtinOptions = schema.QuantizeOptionsT()
    return op


def _redirect(entries: Iterable[schema.TensorMapT], old: int, new: int) -> None:
    """Lets a signature's entries name the new tensor."""
    for entry in entries:
        if entry.tensorIndex == old:
            entry.tensorIndex = new


def _is_among(
    signatures: Iterable[schema.SignatureDefT], index: int, only: Mapping[str, Collection[str]]
) -> bool:
    """Whether an input is one that becomes uint8."""
    return any(
        entry.tensorIndex == index and entry.name.decode() in only.get(s.signatureKey.decode(), ())
        for s in signatures
        for entry in s.inputs
    )


def _check_changed(changed: int, kind: str) -> None:
    if not changed:
        raise ValueError(
            f"Expected int8 {kind}s, to make uint8 ones of them. Received: a file without any, "
            f"with {kind}_type='uint8'. Leave {kind}_type at 'int8' where {kind}s are float or "
            "integers."
        )
