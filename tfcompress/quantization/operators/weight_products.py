"""Matrix products of a tensor and a weight, as the einsum equation of one EinsumDense layer.

Custom layers write them as `ops.einsum("btd,dhk->bthk", x, w)`, `ops.matmul(w, x)` or
`ops.tensordot(x, w, axes=1)`.
"""

from __future__ import annotations

import string
from collections.abc import Callable

from tfcompress.model.equations import read_einsum
from tfcompress.model.graph import Node


def weight_equation(node: Node, weight_shape: tuple[int, ...], is_first: bool) -> str | None:
    """The product as `input,kernel->output`, one letter per axis.

    Args:
        node: A call of `ops.matmul`, `ops.einsum` or `ops.tensordot` on a tensor and a weight.
        weight_shape: Shape of the weight.
        is_first: Whether the weight is the first argument.

    Returns:
        The equation; `None` where no EinsumDense computes the product: it multiplies or moves the
        batch, or sums an axis of one operand alone.
    """
    rule = _RULES.get(type(node.operation).__name__)
    x = tuple(node.inputs[0].shape)
    equation = None if rule is None else rule(node, x, weight_shape, is_first)
    if equation is None:
        return None
    ranks = (len(weight_shape), len(x)) if is_first else (len(x), len(weight_shape))
    product = read_einsum(equation, *ranks)
    if product is None:
        return None
    given, kernel = product.left, product.right
    if is_first:
        given, kernel = kernel, given
    keeps_batch = given[:1] == product.output[:1] and given[:1] not in kernel
    return f"{given},{kernel}->{product.output}" if keeps_batch else None


def _matmul(
    node: Node, x: tuple[int | None, ...], weight: tuple[int, ...], is_first: bool
) -> str | None:
    if len(x) < 2 or len(weight) < 2:
        return None
    before = string.ascii_lowercase[: len(x) - 2]
    if is_first:
        # Of a matrix alone: one of higher rank would have the batch's axis.
        return f"yz,{before}zx->{before}yx" if len(weight) == 2 else None
    stacked = len(weight) - 2
    if stacked >= len(before) or weight[:stacked] != x[len(before) - stacked : -2]:
        # It repeats one of them along an axis, or has the batch's axis.
        return f"{before}yz,zx->{before}yx" if stacked == 0 else None
    return f"{before}yz,{before[len(before) - stacked :]}zx->{before}yx"


def _einsum(
    node: Node, x: tuple[int | None, ...], weight: tuple[int, ...], is_first: bool
) -> str | None:
    return node.operation.subscripts


def _tensordot(
    node: Node, x: tuple[int | None, ...], weight: tuple[int, ...], is_first: bool
) -> str | None:
    first, second = (weight, x) if is_first else (x, weight)
    axes = node.operation.axes
    if isinstance(axes, int):
        pairs = [(len(first) - axes + i, i) for i in range(axes)]
    else:
        ours, theirs = ([a] if isinstance(a, int) else list(a) for a in axes)
        pairs = [(i % len(first), j % len(second)) for i, j in zip(ours, theirs, strict=True)]
    letters = string.ascii_lowercase
    left = list(letters[: len(first)])
    right = list(letters[len(first) : len(first) + len(second)])
    summed = {left[i] for i, _ in pairs}
    for i, j in pairs:
        right[j] = left[i]
    output = [letter for letter in left + right if letter not in summed]
    return f"{''.join(left)},{''.join(right)}->{''.join(output)}"


_Rule = Callable[[Node, tuple[int | None, ...], tuple[int, ...], bool], str | None]
_RULES: dict[str, _Rule] = {"Matmul": _matmul, "Einsum": _einsum, "Tensordot": _tensordot}
