"""Ranges that waste codes or hint at a fault, each with what to do about it.

Nothing here changes a range. The messages are warnings at calibration and lines in the report of
an export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.graph import Graph, input_structure
from tfcompress.quantization.calibration.in_float import observed_by
from tfcompress.quantization.fake_quant.affine import MIN_SCALE
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.norm_steps import SumOfSquares
from tfcompress.quantization.operators.registry import Role, role

#: An input or output with fewer codes than this keeps little of its values.
FEW_CODES = 16
# So many different values must fall on those codes before it is a fault.
_MANY_VALUES = 64
# A concatenation of ranges that differ by more leaves the smaller one 8 codes.
_JOINED_RATIO = 32.0
# What ordinary networks do not reach, in themselves and beside the largest input.
_HUGE, _GROWTH = 5e3, 32.0
# A tensor of smaller values has the codes of zeros.
_ZERO = 255 * MIN_SCALE
# Samples that are run to see what concatenations join, and values of an input that are looked at.
_RUN, _SEEN = 32, 200_000
# Share of values outside the calibrated range that is no accident.
_OUTSIDE = 0.01


@dataclasses.dataclass
class Observed:
    """What calibration has seen of a quantizer's tensors.

    Attributes:
        low: Smallest value.
        high: Largest value.
        calls: `(low, high)` of each tensor, for a quantizer that several tensors share.
        values: Some values of an input or output, (n, channels); `None` for other tensors.
    """

    low: float
    high: float
    calls: Sequence[tuple[float, float]] = ()
    values: np.ndarray | None = None


def calibration_problems(
    model: keras.Model, observed: Mapping[FakeQuantize, Observed]
) -> list[str]:
    """What is suspicious in the ranges that calibration found; one message each."""
    problems = range_problems(model)
    for quantizer, seen in observed.items():
        name, scale = quantizer.source or quantizer.name, float(quantizer.given_scale.numpy())
        if seen.values is None or scale <= 0:
            continue
        if quantizer.rounds_input and seen.low == seen.high and seen.values.size > 1:
            problems.append(
                f"The calibration data of the input {name!r} hold one value only, {seen.low:g}. "
                "Ranges found on such data do not hold for others: calibrate on real samples."
            )
            continue
        if 0 < max(-seen.low, seen.high) < _ZERO:
            problems.append(
                f"The values of {name!r} are smaller than {_ZERO:.3g} and become zeros. Multiply "
                "them by a factor that brings them to ordinary size."
            )
            continue
        few = list(_few_codes(name, seen.values, scale))
        problems.extend(few)
        if quantizer.rounds_input and not few:
            problems.extend(_small_features(name, seen.values, scale))
    problems.extend(_uneven_joins(model, observed))
    return problems


def range_problems(model: keras.Model) -> list[str]:
    """Which ranges of a quantized model are dead (nothing but zeros) or exploding."""
    dead, huge = [], {}
    quantizers = _quantizers(model)
    on_purpose = _zero_on_purpose(model)
    sums = _sums_of_squares(model)
    largest_input = max([_magnitude(q) for q in quantizers if q.rounds_input], default=1.0)
    for quantizer in quantizers:
        if quantizer.fixed_range is not None or float(quantizer.statistics.numpy()[2]) <= 0:
            continue
        size, name = _magnitude(quantizer), quantizer.source or quantizer.name
        if size == 0 and not quantizer.rounds_input and name not in on_purpose:
            dead.append(name)
        is_ordinary = quantizer.rounds_input or quantizer in sums
        if not is_ordinary and size > max(_HUGE, _GROWTH * largest_input):
            huge[name] = size
    # A part of a layer may be zero by itself, such as the first state of a recurrent one.
    alive = {q.source or q.name for q in quantizers if _magnitude(q) > 0}
    dead = [name for name in dict.fromkeys(dead) if name not in alive]
    problems = []
    if dead:
        problems.append(
            f"The outputs of {_listed(dead)} are zero on all calibration data. If that is not "
            "meant (dead ReLUs, weights that were not loaded), check these layers. Weights that "
            "start from zeros train on, and the range with them. What stays zero is better left "
            "out of the model."
        )
    if huge:
        shown = [f"{name} ({size:.3g})" for name, size in huge.items()]
        problems.append(
            f"The ranges of {_listed(shown)} are far wider than those of the inputs: one step of "
            "256 is coarse there, and training may diverge. Check the moving statistics of the "
            "batch norms before them, and that the inputs are scaled as in training."
        )
    return problems


def sample_problems(model: keras.Model, arrays: Sequence[np.ndarray]) -> list[str]:
    """How samples use the codes of the inputs, and what concatenations join; one message each.

    Args:
        model: A quantized model.
        arrays: One array of real samples per input of the model, in its order.
    """
    graph, problems = Graph.from_model(model), []
    for value, array in zip(graph.flat_inputs, arrays, strict=True):
        readers = [node.operation for node in graph.consumers(value)]
        for quantizer in [op for op in readers if isinstance(op, FakeQuantize)][:1]:
            name, scale = quantizer.source or value.name, float(quantizer.given_scale.numpy())
            values = np.reshape(array, (-1, array.shape[-1]))
            values = values[: max(1, _SEEN // values.shape[-1])]
            few = list(_few_codes(name, values, scale)) if scale > 0 else []
            problems += few or (list(_small_features(name, values, scale)) if scale > 0 else [])
    ranges: dict[FakeQuantize, list[tuple[float, float]]] = {}

    def observer(quantizer: FakeQuantize) -> Callable[[tf.Tensor], None]:
        found = ranges.setdefault(quantizer, [])

        def observe(x: tf.Tensor) -> None:
            found.append((float(tf.reduce_min(x)), float(tf.reduce_max(x))))

        return observe

    callbacks = {quantizer: observer(quantizer) for quantizer in _joined(graph)}
    if callbacks:
        samples = [tf.convert_to_tensor(array[:_RUN]) for array in arrays]
        with observed_by(callbacks):
            model(tree.pack_sequence_as(input_structure(model), samples), training=False)
    observed = {q: Observed(0.0, 0.0, calls) for q, calls in ranges.items()}
    return [*problems, *_uneven_joins(model, observed)]


def _sums_of_squares(model: keras.Model) -> set[FakeQuantize]:
    """Quantizers of the sums of squares of a norm, which are large without being a fault."""
    calls = [n for n in Graph.from_model(model).nodes if isinstance(n.operation, FakeQuantize)]
    before = {n.operation: n.inputs[0].node for n in calls}
    return {q for q, n in before.items() if n is not None and isinstance(n.operation, SumOfSquares)}


def outside_problems(model: keras.Model, arrays: Sequence[np.ndarray]) -> list[str]:
    """Which inputs have samples outside the range that they were calibrated for.

    Args:
        model: A quantized model.
        arrays: One array per input of the model, in its order.
    """
    graph, problems = Graph.from_model(model), []
    for value, array in zip(graph.flat_inputs, arrays, strict=True):
        for node in graph.consumers(value):
            quantizer = node.operation
            if not isinstance(quantizer, FakeQuantize) or float(quantizer.scale.numpy()) <= 0:
                continue
            low, high = quantizer.range
            margin = float(quantizer.given_scale.numpy())
            share = float(np.mean((array < low - margin) | (array > high + margin)))
            if share > _OUTSIDE:
                name = quantizer.source or value.name
                problems.append(
                    f"{share:.1%} of the samples of the input {name!r} lie outside the range "
                    f"{low:.4g} to {high:.4g} that it was calibrated for, and are cut off there. "
                    "Calibrate on data like these, or scale them as the calibration data were."
                )
                break
    return problems


def _few_codes(name: str, values: np.ndarray, scale: float) -> Iterator[str]:
    low, high = float(values.min()), float(values.max())
    # A range that a concatenation shares may be too wide as well; that is said of the join.
    is_far = high - low < max(-low, high) / 8
    codes = np.unique(np.rint(values / scale)).size
    if is_far and codes < FEW_CODES and np.unique(values).size >= _MANY_VALUES:
        yield (
            f"{name!r} uses only {codes} of 256 codes: its values lie in {low:.4g} to "
            f"{high:.4g}, and 8 bits cover everything from 0 on. Subtract their mean "
            "before quantization (for an output: add it again in the app)."
        )


def _small_features(name: str, values: np.ndarray, scale: float) -> Iterator[str]:
    """Features that vary by less than a step, because a larger one sets the scale of all."""
    lost = []
    for i, feature in enumerate(values.T):
        if feature.std() < scale / 2 and np.mean(feature != 0) > 0.5 and feature.std() > 0:
            lost += [i] if np.unique(feature).size >= FEW_CODES else []
    if lost:
        numbers = _listed([str(i) for i in lost])
        yield (
            f"Features {numbers} of the input {name!r} vary by less than one step of its scale, "
            f"{scale:.4g}, which larger features set: int8 does not see them. Scale every feature "
            "to a like range before the model, or give each group of features an input of its own."
        )


def _uneven_joins(model: keras.Model, observed: Mapping[FakeQuantize, Observed]) -> Iterator[str]:
    for quantizer, name in _joined(Graph.from_model(model)).items():
        calls = observed[quantizer].calls if quantizer in observed else ()
        sizes = [size for low, high in calls if (size := max(-low, high)) > 0]
        if len(sizes) > 1 and max(sizes) > _JOINED_RATIO * min(sizes):
            yield (
                f"{name!r} joins tensors whose ranges differ by a factor of "
                f"{max(sizes) / min(sizes):.0f} ({min(sizes):.3g} and {max(sizes):.3g}), and one "
                "scale holds for all: the smaller keep few codes. Put a BatchNormalization or "
                "Rescaling before the join that brings them to a like range."
            )


def _joined(graph: Graph) -> dict[FakeQuantize, str]:
    """The quantizer that the inputs of a concatenation share → the concatenation."""
    found = {}
    for node in graph.nodes:
        if role(node.operation) is Role.JOIN:
            makers = [value.node.operation for value in node.inputs if value.node is not None]
            found.update({maker: node.name for maker in makers if isinstance(maker, FakeQuantize)})
    return found


def _zero_on_purpose(model: keras.Model) -> set[str]:
    """Layers that give zeros by their weights: batch norms with γ = 0, a PReLU with α = 0.

    Residual branches and PReLUs start so.
    """
    found = set()
    for operation in Graph.from_model(model).operations():
        for name in ("gamma", "alpha"):
            factor = getattr(operation, name, None)
            if isinstance(factor, keras.Variable) and not np.any(factor.numpy()):
                found.add(operation.name)
    return found


def _magnitude(quantizer: FakeQuantize) -> float:
    if quantizer.fixed_range is not None:
        return max(abs(bound) for bound in quantizer.fixed_range)
    low, high, weight = (float(x) for x in quantizer.statistics.numpy())
    return max(abs(low), abs(high)) / weight if weight > 0 else 0.0


def _quantizers(model: keras.Model) -> list[FakeQuantize]:
    return [o for o in Graph.from_model(model).operations() if isinstance(o, FakeQuantize)]


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
