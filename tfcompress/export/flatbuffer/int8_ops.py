"""What LiteRT's operators do on int8 tensors, and the operator versions that do it."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

_OP = schema.BuiltinOperator

#: Op with a kernel → position of its input, its weights, its bias; axis of the output channels.
WEIGHT_OPS = {
    _OP.CONV_2D: (0, 1, 2, 0),
    _OP.DEPTHWISE_CONV_2D: (0, 1, 2, 3),
    _OP.FULLY_CONNECTED: (0, 1, 2, 0),
    _OP.TRANSPOSE_CONV: (2, 1, 3, 0),
}
#: Element by element on two tensors, one of which may be a constant.
ARITHMETIC_OPS = (_OP.ADD, _OP.SUB, _OP.MUL)
#: Other operators that compute new codes from codes.
FUNCTION_OPS = (
    _OP.AVERAGE_POOL_2D,
    _OP.BATCH_MATMUL,
    _OP.ELU,
    _OP.GELU,
    _OP.HARD_SWISH,
    _OP.LEAKY_RELU,
    _OP.LOGISTIC,
    _OP.LOG_SOFTMAX,
    _OP.MEAN,
    _OP.RELU,
    _OP.RELU6,
    _OP.RESIZE_BILINEAR,
    _OP.SOFTMAX,
    _OP.SUM,
    _OP.TANH,
)
#: Operators that only move or choose codes, all of one scale and zero point, constants among them.
MOVE_OPS = (
    _OP.BATCH_TO_SPACE_ND,
    _OP.BROADCAST_TO,
    _OP.CONCATENATION,
    _OP.DEPTH_TO_SPACE,
    _OP.EXPAND_DIMS,
    _OP.GATHER,
    _OP.GATHER_ND,
    _OP.MAXIMUM,
    _OP.MAX_POOL_2D,
    _OP.MINIMUM,
    _OP.MIRROR_PAD,
    _OP.PACK,
    _OP.PAD,
    _OP.PADV2,
    _OP.REDUCE_MAX,
    _OP.REDUCE_MIN,
    _OP.RESHAPE,
    _OP.RESIZE_NEAREST_NEIGHBOR,
    _OP.REVERSE_V2,
    _OP.SELECT,
    _OP.SELECT_V2,
    _OP.SLICE,
    _OP.SPACE_TO_BATCH_ND,
    _OP.SPACE_TO_DEPTH,
    _OP.SPLIT,
    _OP.SPLIT_V,
    _OP.SQUEEZE,
    _OP.STRIDED_SLICE,
    _OP.TILE,
    _OP.TRANSPOSE,
    _OP.UNPACK,
)
#: Operators that look values up in a constant table: new codes where the table holds floats.
TABLE_OPS = (_OP.GATHER,)
#: Operators that compare codes: whole numbers for positions, and codes of the scale of the input.
SELECT_OPS = (_OP.ARG_MAX, _OP.ARG_MIN, _OP.TOPK_V2)
#: Operators that compare numbers → the same with both sides exchanged.
COMPARE_OPS = {
    _OP.EQUAL: _OP.EQUAL,
    _OP.GREATER: _OP.LESS,
    _OP.GREATER_EQUAL: _OP.LESS_EQUAL,
    _OP.LESS: _OP.GREATER,
    _OP.LESS_EQUAL: _OP.GREATER_EQUAL,
    _OP.NOT_EQUAL: _OP.NOT_EQUAL,
}
#: A stand-alone ReLU → the fused activation that takes its place.
RELU_OPS = {
    _OP.RELU: schema.ActivationFunctionType.RELU,
    _OP.RELU6: schema.ActivationFunctionType.RELU6,
}
#: Operators that can take up the ReLU behind them.
FUSES_RELU = (*WEIGHT_OPS, *ARITHMETIC_OPS)

#: First version of an operator that knows int8; 1 where all do.
_VERSIONS = {
    **dict.fromkeys((*ARITHMETIC_OPS, *FUNCTION_OPS, *MOVE_OPS, *SELECT_OPS), 2),
    **dict.fromkeys((_OP.RESHAPE, _OP.SQUEEZE, _OP.EXPAND_DIMS, _OP.REVERSE_V2, _OP.ELU), 1),
    **dict.fromkeys((_OP.SELECT, _OP.SELECT_V2), 1),
    _OP.HARD_SWISH: 1,
    _OP.CONV_2D: 3,
    _OP.DEPTHWISE_CONV_2D: 3,
    _OP.FULLY_CONNECTED: 4,
    _OP.TRANSPOSE_CONV: 2,
    _OP.BROADCAST_TO: 2,
    _OP.GELU: 2,
    _OP.TILE: 3,
    _OP.DEQUANTIZE: 2,
}
#: First version of an operator that knows 16-bit activations. CONV_2D and FULLY_CONNECTED have the
#: ones that say of which type the bias is.
_INT16_VERSIONS = {
    **dict.fromkeys((_OP.ADD, _OP.CONCATENATION, _OP.MAX_POOL_2D, _OP.MEAN, _OP.PAD), 3),
    **dict.fromkeys((_OP.PADV2, _OP.REDUCE_MAX, _OP.DEQUANTIZE), 3),
    _OP.QUANTIZE: 2,
    _OP.CONV_2D: 8,
    _OP.DEPTHWISE_CONV_2D: 5,
    _OP.FULLY_CONNECTED: 11,
    _OP.SLICE: 4,
    _OP.TRANSPOSE: 5,
    **dict.fromkeys((_OP.EXPAND_DIMS, _OP.RESHAPE, _OP.SQUEEZE), 1),
    _OP.STRIDED_SLICE: 2,
}
#: The runtime that has them.
INT16_RUNTIME = "2.15.0"
# From which version FULLY_CONNECTED may lack a bias, and TRANSPOSE_CONV have one or a ReLU.
_DENSE_WITHOUT_BIAS = 6
_TRANSPOSED_WITH_BIAS = 3
_TRANSPOSED_WITH_RELU = 4
#: The runtime that has the versions above, and those that take INT4 and INT2 weights. Of INT2 only
#: the oldest that was tried is known.
INT8_RUNTIME = "2.5.0"
PACKED_RUNTIMES = {schema.TensorType.INT4: "2.11.0", schema.TensorType.INT2: "2.21.0"}
#: Operators by which a table of codes is looked up or computed, and a runtime that has them.
#: BITCAST and the int8 EXP and LOG came after 2.11, where TensorFlow's list of versions ends.
LOOKUP_OPS = frozenset((_OP.BITCAST, _OP.EXP, _OP.LOG))
TABLE_RUNTIME = "2.14.0"
#: The first version of CAST that knows int8, and the runtime that has it.
CAST_VERSION, CAST_RUNTIME = 2, "2.7.0"
#: Which kernels of few bits are stored packed, and the version of the op that says so: XNNPACK runs
#: INT4 and INT2 in FULLY_CONNECTED, and no such convolutions. For INT2 it is the newest version
#: that LiteRT has, so that older ones refuse the file.
PACKED_VERSIONS = {
    (_OP.FULLY_CONNECTED, schema.TensorType.INT4): 10,
    (_OP.FULLY_CONNECTED, schema.TensorType.INT2): 14,
}


def int16_version(code: int) -> int | None:
    """The version that an operator needs for 16-bit activations; `None` where none is known."""
    return _INT16_VERSIONS.get(code)


def int8_version(code: int, op: schema.OperatorT) -> int:
    """The version that an operator needs to run on int8 tensors."""
    version = _VERSIONS.get(code, 1)
    if code not in WEIGHT_OPS:
        return version
    bias = WEIGHT_OPS[code][2]
    has_bias = len(op.inputs) > bias and op.inputs[bias] >= 0
    if code == _OP.FULLY_CONNECTED and not has_bias:
        return max(version, _DENSE_WITHOUT_BIAS)
    if code == _OP.TRANSPOSE_CONV:
        fused = op.builtinOptions.fusedActivationFunction
        version = max(version, _TRANSPOSED_WITH_BIAS if has_bias else 0)
        return max(version, _TRANSPOSED_WITH_RELU if fused else 0)
    return version
