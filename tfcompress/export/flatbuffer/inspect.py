"""What is in a `.tflite`: ops, tensors, scales, zeros, distinct values and bytes.

Read from the flatbuffer itself, without TensorFlow: the interpreter would show INT4 as int8 and
hide the ops that a delegate took.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.files import PathOrBytes, gzip_size, read_tflite, sha256
from tfcompress.export.flatbuffer.records import OpSummary, SignatureSummary, TensorSummary
from tfcompress.export.flatbuffer.summary import FileSummary
from tfcompress.export.flatbuffer.unpack import unpack

#: Bytes of constants that are looked at for each byte of a file: tensors of several signatures
#: may share them.
_READS_PER_BYTE = 64

_TYPE_NAMES = {
    value: name.lower() for name, value in vars(schema.TensorType).items() if name.isupper()
}


def inspect_tflite(path_or_bytes: PathOrBytes) -> FileSummary:
    """Reads a `.tflite` and describes what is in it.

    Args:
        path_or_bytes: Path of a `.tflite` file, or its bytes.

    Raises:
        ValueError: If there is no such file, it is not a TFLite flatbuffer, or it is truncated or
            damaged.
    """
    data = read_tflite(path_or_bytes)
    model = parse_tflite(data)
    figures = _Figures(model, limit=_READS_PER_BYTE * len(data))
    tensors = tuple(
        _tensor(model, number, index, index in used, figures)
        for number, graph in enumerate(model.subgraphs)
        for used in (_used(graph),)
        for index in range(len(graph.tensors or ()))
    )
    by_index = {(tensor.subgraph, tensor.index): tensor for tensor in tensors}
    return FileSummary(
        num_bytes=len(data),
        gzip_bytes=gzip_size(data),
        sha256=sha256(data),
        num_subgraphs=len(model.subgraphs),
        ops=tuple(_ops(model, by_index)),
        tensors=tensors,
        signatures=tuple(_signature(s, by_index) for s in model.signatureDefs or ()),
        min_runtime_version=_metadata(model, "min_runtime_version"),
    )


def parse_tflite(data: bytes) -> schema.ModelT:
    """Returns the objects in a `.tflite` that `read_tflite` has checked.

    Raises:
        ValueError: The options of an operator are damaged, which `read_tflite` does not see.
    """
    try:
        return flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    except Exception as error:
        raise ValueError(
            f"Expected a whole TFLite flatbuffer. Received: {len(data)} bytes with options of an "
            f"operator that cannot be read ({type(error).__name__}: {error}). The file is damaged: "
            "export it or fetch it again"
        ) from error


class _Figures:
    """Non-zeros and distinct values of constants, computed once where tensors share a buffer.

    Args:
        model: The file.
        limit: How many bytes of constants may be looked at.
    """

    def __init__(self, model: schema.ModelT, limit: int):
        self._model, self._left = model, limit
        self._found: dict[tuple, tuple[int | None, int | None]] = {}

    def of(
        self,
        buffer: int,
        dtype: str,
        shape: tuple[int, ...],
        zero_points: tuple[int, ...],
        axis: int | None,
    ) -> tuple[int | None, int | None]:
        """`(non-zeros, distinct values)`; `None` for a type that NumPy cannot hold."""
        key = (buffer, dtype, shape, zero_points, axis)
        if key not in self._found:
            data = self._model.buffers[buffer].data
            self._left -= len(data)
            if self._left < 0:
                raise ValueError(
                    "Expected tensors that share constants in a few ways. Received: a file whose "
                    "constants are referred to again and again. It is damaged or made to take long"
                )
            values = unpack(data, dtype, math.prod(shape))
            self._found[key] = (
                (None, None)
                if values is None
                else (_non_zeros(values, zero_points, axis, shape), int(np.unique(values).size))
            )
        return self._found[key]


def _used(graph: schema.SubGraphT) -> set[int]:
    return {int(i) for op in graph.operators or () for i in (*_list(op.inputs), *_list(op.outputs))}


def _tensor(
    model: schema.ModelT, subgraph: int, index: int, is_used: bool, figures: _Figures
) -> TensorSummary:
    tensor = model.subgraphs[subgraph].tensors[index]
    dtype = _TYPE_NAMES.get(tensor.type, f"type_{tensor.type}")
    static = tuple(int(d) for d in _list(tensor.shape))
    shape = tuple(int(d) for d in _list(tensor.shapeSignature)) or static
    size = None if -1 in shape else math.prod(shape)
    quantization = tensor.quantization
    scales = tuple(float(s) for s in _list(quantization and quantization.scale))
    zero_points = tuple(int(z) for z in _list(quantization and quantization.zeroPoint))
    axis = int(quantization.quantizedDimension) if len(scales) > 1 else None
    data = model.buffers[tensor.buffer].data
    num_bytes = 0 if data is None else len(data)
    found: tuple[int | None, int | None] = (None, None)
    if num_bytes:
        found = figures.of(int(tensor.buffer), dtype, static, zero_points, axis)
    return TensorSummary(
        name=_text(tensor.name),
        subgraph=subgraph,
        index=index,
        dtype=dtype,
        shape=shape,
        buffer=int(tensor.buffer),
        num_bytes=num_bytes,
        scales=scales,
        zero_points=zero_points,
        quantized_axis=axis,
        is_constant=num_bytes > 0,
        is_used=is_used,
        size=size,
        non_zeros=found[0],
        num_distinct=found[1],
    )


def _non_zeros(
    values: np.ndarray, zero_points: tuple[int, ...], axis: int | None, shape: tuple[int, ...]
) -> int:
    if not any(zero_points):
        return int(np.count_nonzero(values))
    zero = np.asarray(zero_points, np.int64)
    if axis is not None and zero.size > 1:
        if values.size != math.prod(shape) or shape[axis] != zero.size:
            # Sparse values, or zero points that fit no channels.
            return int(np.count_nonzero(values))
        values = values.reshape(shape)
        zero = zero.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return int(np.count_nonzero(values.astype(np.int64) != zero))


def _ops(
    model: schema.ModelT, tensors: Mapping[tuple[int, int], TensorSummary]
) -> Iterator[OpSummary]:
    counted: set[int] = set()
    for number, graph in enumerate(model.subgraphs):
        for op in graph.operators or ():
            inputs = tuple(int(i) for i in _list(op.inputs))
            outputs = tuple(int(i) for i in _list(op.outputs))
            constants = [tensors[number, i] for i in inputs if i >= 0]
            constants = [tensor for tensor in constants if tensor.is_constant]
            own = {t.buffer: t.num_bytes for t in constants if t.buffer not in counted}
            counted.update(own)
            yield OpSummary(
                name=_op_name(model.operatorCodes[op.opcodeIndex]),
                subgraph=number,
                inputs=inputs,
                outputs=outputs,
                layer=_layer_name(constants, [tensors[number, i] for i in outputs]),
                constant_bytes=sum(own.values()),
            )


def _op_name(code: schema.OperatorCodeT) -> str:
    builtin = flatbuffer_utils.get_builtin_code_from_operator_code(code)
    if builtin != schema.BuiltinOperator.CUSTOM:
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        return names.get(builtin, f"BUILTIN_{builtin}")
    custom = _text(code.customCode)
    return custom if custom.startswith("Flex") else f"CUSTOM:{custom}"


def _layer_name(constants: list[TensorSummary], outputs: list[TensorSummary]) -> str:
    """Returns the path that a weight, or else the output, has in the converter's names.

    The output of the last op is named after the signature, so a weight says more.
    """
    weights = [tensor for tensor in constants if "/" in tensor.name]
    source = max(weights, key=lambda t: t.num_bytes, default=outputs[0] if outputs else None)
    if source is None:
        return ""
    first = source.name.split(";")[0]
    return first.rsplit("/", 1)[0] if "/" in first else first


def _signature(signature: schema.SignatureDefT, tensors: Mapping) -> SignatureSummary:
    number = int(signature.subgraphIndex)

    def named(maps):
        return {_text(m.name): tensors[number, int(m.tensorIndex)] for m in maps or ()}

    key = _text(signature.signatureKey)
    return SignatureSummary(key, number, named(signature.inputs), named(signature.outputs))


def _metadata(model: schema.ModelT, name: str) -> str | None:
    for entry in model.metadata or ():
        data = model.buffers[entry.buffer].data
        if _text(entry.name) == name and data is not None:
            return bytes(data).rstrip(b"\0").decode("utf-8", "replace")
    return None


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _list(value: Any) -> list:
    return [] if value is None else list(value)
