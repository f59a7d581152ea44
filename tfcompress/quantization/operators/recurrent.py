"""Recurrent layers, unrolled: every step of a sequence rounds to the same ranges.

LiteRT's own recurrent operators compute with ranges of their own, so a layer becomes its steps.
The products with the inputs of all steps are one dense layer, those with the state one per step.
Steps share layers and quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, tree

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder, untaken_transforms
from tfcompress.quantization.operators.cells import CELLS
from tfcompress.quantization.operators.masking import chosen, mask_steps
from tfcompress.quantization.operators.registry import OperatorSpec, register
from tfcompress.quantization.operators.steps import StackedSteps, Steps

#: Steps of the longest sequence that is unrolled: the file grows with each, and so does the time
#: of `quantize` and of an export, by a fifth of a second and more.
MAX_STEPS = 128
#: Parts that give the states of a step.
_STATES = ("hidden", "carry")


def _refusal(layer: keras.Layer, cell: keras.Layer) -> str | None:
    """Why the steps of a layer cannot be in the file; `None` where they can."""
    if type(cell) not in CELLS:
        return f"the steps of a {type(cell).__name__} are not known"
    if getattr(layer, "stateful", False):
        return (
            "it keeps its state between calls, which a file does not; make the state an input and "
            "an output of the model"
        )
    if isinstance(cell, layers.GRUCell) and not cell.reset_after:
        return "its reset gate acts before the product (reset_after=False)"
    left = untaken_transforms(layer, [cell.kernel, cell.recurrent_kernel])
    return f"its {', '.join(left)} is masked" if left else None


def _layer(b: Builder, node: Node) -> list[Value] | None:
    """Its steps: dense layers or convolutions, sums, gates and products of shared ranges."""
    layer, cell = node.operation, node.operation.cell
    arguments = dict(zip(("sequences", "initial_state", "mask"), node.args, strict=False))
    arguments.update(node.kwargs)
    x, steps = node.inputs[0], node.inputs[0].shape[1]
    reason = _refusal(layer, cell)
    if steps is None:
        reason = reason or "the number of its steps is not known"
    elif steps > MAX_STEPS:
        reason = reason or (
            f"it has {steps} steps; sequences of up to {MAX_STEPS} are unrolled in the file"
        )
    mask: Any = arguments.get("mask")
    if mask is not None and len(x.shape) > 3:
        reason = reason or "tfcompress has no int8 form of masked steps of a convolution yet"
    if reason is not None:
        b.result.refused[layer] = reason
        return None
    steps_of = CELLS[type(cell)](b, layer, cell)
    given = [v for v in tree.flatten(arguments.get("initial_state")) if isinstance(v, Value)]
    states: list[Value | None] = [*given] or [None] * steps_of.count
    part = b.part(lambda n: Steps(name=n), "steps")
    z = steps_of.inputs(x)
    inputs = b.insert(part, (z,), {}, part.compute_output_spec(z.spec))
    masks = [None] * len(inputs) if mask is None else mask_steps(b, mask)
    if layer.go_backwards:
        inputs, masks = inputs[::-1], masks[::-1]
    outputs: list[Value] = []
    for step, kept in zip(inputs, masks, strict=True):
        new = steps_of.step(step, states)
        if kept is None:
            states = [*new]
        else:
            before = outputs[-1] if outputs else None
            states = [
                chosen(b, name, now, old, kept)
                for name, now, old in zip(_STATES, new, states, strict=False)
            ]
        output: Any = states[0]
        if kept is not None and layer.zero_output_for_mask:
            output = chosen(b, "output", new[0], None, kept)
        elif kept is not None and given:
            # Outputs start with 0, states do not.
            output = chosen(b, "output", new[0], before, kept)
        outputs.append(output)
    _share(b, steps_of, given)
    result = [outputs[-1]]
    if layer.return_sequences:
        result = [b.call(lambda n: StackedSteps(name=n), "", *outputs)]
    return [*result, *states] if layer.return_state else result  # type: ignore[list-item]


def _single_step(b: Builder, node: Node) -> list[Value] | None:
    """One step; a state that is an input of the model shares the range of the state it becomes."""
    cell = node.operation
    reason = _refusal(cell, cell)
    if reason is not None:
        b.result.refused[cell] = reason
        return None
    steps_of = CELLS[type(cell)](b, cell, cell)
    x, *states = node.inputs
    new = steps_of.step(steps_of.inputs(x), [*states])
    _share(b, steps_of, states)
    return [new[0], *new][: len(node.outputs)]


def _share(b: Builder, steps: Any, given: Sequence[Value]) -> None:
    """One range for each part of the steps, and for a state that comes from an input."""
    steps.one_range(*steps.rounded)
    for value, name in zip(given, _STATES, strict=False):
        part = b.made(name)
        if part is not None and value.node is None:
            b.result.one_range[part].append(value)
    zero = b.made("zero")
    if zero is not None:
        # It is 0 in any range.
        b.result.one_range[b.made("hidden")].extend(n.output for n in b.graph.calls(zero))


register(layers.LSTM, layers.GRU, layers.SimpleRNN, spec=OperatorSpec(decompose=_layer))
register(
    *(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), spec=OperatorSpec(decompose=_layer)
)
register(layers.RNN, spec=OperatorSpec(decompose=_layer))
register(
    *(layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell),
    spec=OperatorSpec(decompose=_single_step),
)
