"""Functions of each value that become a table of codes, and functions composed of others."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import activations, layers, ops

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.elementwise import TABLE
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.samples import along_axis
from tfcompress.quantization.operators.tracing import traced

register(
    *(activations.celu, activations.elu, activations.exponential, activations.gelu),
    *(activations.hard_shrink, activations.hard_tanh, activations.log_sigmoid, activations.mish),
    *(activations.selu, activations.soft_shrink, activations.softplus, activations.softsign),
    *(activations.sparse_plus, activations.sparse_sigmoid, activations.squareplus),
    *(activations.tanh_shrink, activations.threshold),
    *(ops.celu, ops.elu, ops.gelu, ops.hard_shrink, ops.hard_tanh, ops.log_sigmoid, ops.selu),
    *(ops.soft_shrink, ops.softplus, ops.softsign, ops.sparse_plus, ops.sparse_sigmoid),
    *(ops.squareplus, ops.tanh_shrink, ops.threshold),
    *(ops.absolute, ops.sqrt, ops.cbrt, ops.rsqrt, ops.reciprocal, ops.sign),
    *(ops.exp, ops.exp2, ops.expm1, ops.log, ops.log10, ops.log1p, ops.log2, ops.erf, ops.erfinv),
    *(ops.sin, ops.cos, ops.tan, ops.arcsin, ops.arccos, ops.arctan, ops.sinc),
    *(ops.sinh, ops.cosh, ops.arcsinh, ops.arccosh, ops.arctanh),
    *(ops.floor, ops.ceil, ops.round, ops.trunc, ops.nan_to_num),
    *(ops.deg2rad, ops.rad2deg, ops.power),
    # Not constants, which the converter would fold together with their quantizers.
    *(ops.zeros_like, ops.ones_like, ops.full_like),
    layers.ELU,
    spec=TABLE,
)


def _of_one_tensor(name: str) -> OperatorSpec:
    """A table where it is of a tensor and a number."""

    def reason(node: Node) -> str | None:
        if len(node.inputs) > 1:
            return f"LiteRT has no int8 form of {name}"
        assert TABLE.call_reason is not None
        return TABLE.call_reason(node)

    return dataclasses.replace(TABLE, call_reason=reason)


register(ops.arctan2, spec=_of_one_tensor("Arctan2"))
register(ops.floor_divide, spec=_of_one_tensor("FloorDivide"))
register(ops.mod, spec=_of_one_tensor("Mod"))


def _glu(b: Builder, node: Node) -> Value | list[Value] | None:
    """x₁ · sigmoid(x₂), of the halves of x."""
    axis = node.operation.axis

    def gated(operation: Any, x: Any) -> Any:
        left, right = ops.split(x, 2, axis=axis)
        return ops.multiply(left, ops.sigmoid(right))

    return traced(gated)(b, node)


def _square(b: Builder, node: Node) -> Value:
    """x · x."""
    return b.call(lambda name: layers.Multiply(name=name), "", node.inputs[0], node.inputs[0])


def _logaddexp(b: Builder, node: Node) -> list[Value] | None:
    """x + softplus(y − x)."""

    def composed(operation: Any, x: Any, y: Any) -> Any:
        return ops.add(x, ops.softplus(ops.subtract(y, x)))

    return traced(composed)(b, node) if len(node.inputs) == 2 else None


#: Most factors of a product over an axis: each is one rounding.
_MAX_FACTORS = 16


def _prod(b: Builder, node: Node) -> list[Value] | None:
    """x₁ · x₂ · … along one axis."""
    operation, x = node.operation, node.inputs[0]
    axis = operation.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    if not isinstance(axis, int) or axis % len(x.shape) == 0 or operation.dtype is not None:
        return None
    if (x.shape[axis] or _MAX_FACTORS + 1) > _MAX_FACTORS:
        return None

    def composed(operation: Any, x: Any) -> Any:
        factors = ops.unstack(x, axis=axis)
        while len(factors) > 1:
            pairs = zip(factors[::2], factors[1::2], strict=False)
            last = factors[-1:] if len(factors) % 2 else []
            factors = [ops.multiply(a, c) for a, c in pairs] + last
        return ops.expand_dims(factors[0], axis) if operation.keepdims else factors[0]

    return traced(composed)(b, node)


def _prod_reason(node: Node) -> str:
    return f"a product goes over one axis of up to {_MAX_FACTORS} values"


def _diff(b: Builder, node: Node) -> list[Value] | None:
    """x[1:] − x[:-1] along an axis, n times."""
    operation, rank = node.operation, len(node.inputs[0].shape)
    axis = operation.axis % rank
    if axis == 0:
        return None

    def composed(operation: Any, x: Any) -> Any:
        before = (slice(None),) * axis
        for _ in range(operation.n):
            x = ops.subtract(x[(*before, slice(1, None))], x[(*before, slice(None, -1))])
        return x

    return traced(composed)(b, node)


register(ops.logaddexp, spec=OperatorSpec(decompose=_logaddexp))
register(ops.diff, spec=OperatorSpec(decompose=_diff, call_reason=along_axis("axis")))
register(
    ops.prod, spec=OperatorSpec(role=Role.ARITHMETIC, decompose=_prod, call_reason=_prod_reason)
)
register(ops.square, spec=OperatorSpec(decompose=_square))
register(ops.glu, spec=OperatorSpec(decompose=_glu))
