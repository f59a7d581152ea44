"""Sparse encoding: only those blocks of a kernel that hold a weight are in the file.

LiteRT has one sparse int8 kernel: FULLY_CONNECTED with blocks of 16 weights along the input. It
does not run under XNNPACK. Convolutions have none, and single zeros of int8 kernels make the
interpreter fail to allocate, so both stay dense; gzip makes less of them than an encoding would.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.buffers import share_buffers
from tfcompress.export.flatbuffer.constants import squeezed, tflite_layout
from tfcompress.export.flatbuffer.float_kernels import FloatKernel
from tfcompress.export.flatbuffer.packing import packed
from tfcompress.export.lowering.bake import BakedKernel

#: Weights along the input that are stored or left out together.
BLOCK = 16
# The first version of FULLY_CONNECTED that knows sparse weights.
_SPARSE_VERSION = 8
_VECTORS = (
    (np.uint8, schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
    (np.uint16, schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
    (np.int32, schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
)


def encode_sparse(data: bytes, kernels: list[BakedKernel]) -> tuple[bytes, tuple[str, ...]]:
    """Encodes the kernels of dense layers whose zeros come in blocks.

    Args:
        data: An int8 `.tflite` with the kernels' codes in it.
        kernels: What it holds.

    Returns:
        The file, and the names of the layers that it holds sparse.

    Raises:
        ValueError: No layer can be encoded, with the reason for each that has zeros.
    """
    reasons = {k.layer: _reason(k) for k in kernels if np.any(k.codes == 0)}
    encoded = []
    if None in reasons.values():
        model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
        for kernel in kernels:
            if reasons.get(kernel.layer, "") is not None:
                continue
            if _encode(model, kernel):
                encoded.append(kernel.layer)
            else:
                reasons[kernel.layer] = "the converter has merged or rewritten it"
    if not encoded:
        found = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
        raise ValueError(
            "Expected sparse_encoding for a model with a dense layer whose zeros come in blocks of "
            f"{BLOCK} along its input (pattern=Block({BLOCK}, 1)). Received: "
            f"{found or 'a model without zero weights'}. Without sparse_encoding gzip, as in an "
            "APK, makes use of the zeros."
        )
    share_buffers(model)
    return packed(model), tuple(encoded)


def sparse_float_layers(data: bytes, kernels: list[FloatKernel]) -> tuple[str, ...]:
    """Names the layers whose zeros the converter left out of a float file.

    Raises:
        ValueError: There are none.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    shapes = [squeezed(t.shape) for graph in model.subgraphs for t in graph.tensors if t.sparsity]
    found = tuple(
        kernel.layer
        for kernel in kernels
        if np.any(kernel.values == 0)
        and squeezed(tflite_layout(kernel.values, kernel.keras_class).shape) in shapes
    )
    if not found:
        zeros = {k.layer: f"{np.mean(k.values == 0):.0%}" for k in kernels}
        raise ValueError(
            "Expected sparse_encoding for a model with kernels of mostly zeros: the converter "
            f"encodes what becomes smaller. Received zeros: {zeros}. Prune it, or leave "
            "sparse_encoding off."
        )
    return found


def _reason(kernel: BakedKernel) -> str | None:
    """Why a kernel stays dense; `None` where encoding makes it smaller."""
    if kernel.keras_class != "Dense":
        return f"LiteRT has no sparse int8 kernel for {kernel.keras_class}"
    if kernel.num_bits != 8:
        return f"its weights have {kernel.num_bits} bits"
    inputs, outputs = kernel.codes.shape
    if inputs % BLOCK:
        return f"its {inputs} inputs are no multiple of {BLOCK}"
    indices = _kept(tflite_layout(kernel.codes, "Dense"))[1]
    if indices.size * (BLOCK + 1) + outputs >= kernel.codes.size:
        return f"too few of its zeros come in blocks of {BLOCK} along the input"
    return None


def _kept(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(first block of every row and one past the last, column of every block)` of `(out, in)`."""
    holds = codes.reshape(len(codes), -1, BLOCK).any(-1)
    return np.concatenate([[0], np.cumsum(holds.sum(1))]), np.nonzero(holds)[1]


def _encode(model: schema.ModelT, kernel: BakedKernel) -> bool:
    """Encodes the kernel wherever the file holds it; whether it does."""
    codes = np.ascontiguousarray(tflite_layout(kernel.codes, "Dense").astype(np.int8))
    raw, found = codes.tobytes(), False
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            if code.builtinCode != schema.BuiltinOperator.FULLY_CONNECTED:
                continue
            tensor = graph.tensors[op.inputs[1]]
            stored = model.buffers[tensor.buffer].data
            same_shape = tuple(tensor.shape) == codes.shape
            if tensor.sparsity is None and same_shape and bytes(stored) == raw:
                _set_sparse(model, tensor, codes)
                code.version = max(code.version, _SPARSE_VERSION)
                found = True
    return found


def _set_sparse(model: schema.ModelT, tensor: schema.TensorT, codes: np.ndarray) -> None:
    segments, indices = _kept(codes)
    blocks = codes.reshape(len(codes), -1, BLOCK)
    values = blocks[blocks.any(-1)]
    columns = schema.DimensionMetadataT(
        format=schema.DimensionType.SPARSE_CSR,
        **_vector("arraySegments", segments),
        **_vector("arrayIndices", indices),
    )
    tensor.sparsity = schema.SparsityParametersT(
        traversalOrder=[0, 1, 2],
        blockMap=[1],
        dimMetadata=[_dense(len(codes)), columns, _dense(BLOCK)],
    )
    # A buffer of its own: the dense one may have other readers.
    model.buffers.append(schema.BufferT())
    tensor.buffer = len(model.buffers) - 1
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)


def _dense(size: int) -> schema.DimensionMetadataT:
    return schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=size)


def _vector(name: str, values: np.ndarray) -> dict:
    """The narrowest vector that holds `values`, as arguments of a dimension."""
    largest = values.max(initial=0)
    dtype, kind, cls = next(v for v in _VECTORS if largest <= np.iinfo(v[0]).max)
    return {f"{name}Type": kind, name: cls(values=values.astype(dtype))}
