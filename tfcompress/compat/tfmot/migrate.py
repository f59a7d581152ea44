"""`from_tfmot`: a model of tf_keras, with what tfmot made of it, as a model of Keras 3."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.compat.tfmot.fake_quant import Range
from tfcompress.compat.tfmot.graph import build
from tfcompress.compat.tfmot.layers import FoundQuantization, LayerMaker
from tfcompress.compat.tfmot.placement import RangePlanner
from tfcompress.compat.tfmot.reading import read
from tfcompress.model.graph import Graph
from tfcompress.model.kernels import layer_kernels
from tfcompress.quantization.calibration.ranges import (
    calibrate,
    calibration_batches,
    first_samples,
)
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.grids.last_value import LastValueWeights
from tfcompress.quantization.observers import MovingAverage
from tfcompress.quantization.operators.registry import Role, role
from tfcompress.quantization.quantize import build_quantized, quantize
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.quantization.schemes import ActivationScheme, Scheme, WeightScheme

# Calibration samples that a quantized model keeps, by which an export verifies itself.
_KEPT_SAMPLES = 256
# As tfmot's ranges move in training.
_MOVES = ActivationScheme(observer=MovingAverage(0.999))


def from_tfmot(
    model: Any | str | os.PathLike, *, calibration_data: Any = None
) -> keras.Model | QuantizedModel:
    """Returns a model of tf_keras, and what tfmot 0.8 made of it, as a model of Keras 3.

    - What `quantize_model` or `quantize_apply` gave becomes a `QuantizedModel` with tfmot's ranges
      of activations and of weights as they are: its outputs are tfmot's, but for the rounding of
      biases and of sums to int32. It trains on with `compile` and `fit`, and `export_tflite` writes
      its file. What is only annotated becomes what `quantize` gives, with the layers in float that
      are not annotated.
    - Layers of `prune_low_magnitude` hold their zeros in further training (`strip` gives plain
      layers); layers of `cluster_weights` keep their codebooks and assignments, as `cluster`
      gives them. Stripped models are plain models, of which `quantize` and `cluster` keep the
      zeros.
    - Everything else becomes the plain layers of Keras 3.

    The optimizer and `compile` are not taken over. A file is loaded in a process of its own, in
    which `tf.keras` is the legacy Keras; here `tf.keras` stays what it is.

    Args:
        model: A built Sequential or Functional model of tf_keras, or the path of its file: `.h5`,
            `.keras`, or the folder of a SavedModel that Keras wrote.
        calibration_data: As for `quantize`: gives the ranges that tfmot does not have. Those that
            it has stay as they are.

    Raises:
        TypeError: Something else.
        ValueError: A subclassed or unbuilt model; a layer or an option that Keras 3 does not have;
            a quantizer that is not of tfmot's default 8-bit scheme; a tensor that it rounds and an
            int8 operator does not; one that an int8 operator rounds and tfmot does not, without
            `calibration_data`.
        ImportError: A file, where tf_keras (`tfcompress[tfmot]`) is not installed.

    Warns:
        UserWarning: A model that was quantized and never trained, whose ranges mean nothing; layers
            whose zeros or codebooks are not kept in further training (those inside other layers).
    """
    description = read(model)
    maker = LayerMaker(description.arrays)
    plain = build(description.model, maker)
    found = maker.quantized
    if not found.layers:
        return plain
    if found.is_annotated:
        config = QuantizationConfig(by_name=_float_layers(plain, found))
        return quantize(plain, config, calibration_data=calibration_data)
    if not any(r.is_known for r in found.ranges.values()):
        return _never_trained(plain, found, calibration_data)
    return _quantized(plain, found, calibration_data)


def _never_trained(
    plain: keras.Model, found: FoundQuantization, calibration_data: Any
) -> QuantizedModel:
    if calibration_data is None:
        warnings.warn(
            f"No training batch has set the ranges of {plain.name!r}: tfmot has -6 … 6 everywhere. "
            "They are left unknown: train the model, or pass calibration_data.",
            stacklevel=3,
        )
    config = QuantizationConfig(by_name=_float_layers(plain, found))
    return quantize(plain, config, calibration_data=calibration_data)


def _quantized(
    plain: keras.Model, found: FoundQuantization, calibration_data: Any
) -> QuantizedModel:
    by_name: dict[str, Scheme | None] = {
        name: Scheme(WeightScheme(quantizer=LastValueWeights(group)), _MOVES)
        for name, (_, group) in found.kernels.items()
    }
    by_name |= _float_layers(plain, found)
    config = QuantizationConfig(Scheme(activations=_MOVES), by_name=by_name)
    planner = RangePlanner(plain, config, found.ranges)
    the_plan = planner.plan()
    floats = {name: why for name, why in the_plan.refused_floats.items() if name in found.layers}
    if floats or the_plan.limits:
        raise ValueError(
            "Expected layers that have an int8 form. Received: "
            f"{dict(floats) | dict(the_plan.limits)}, which tfmot has quantized."
        )
    if planner.unused():
        raise ValueError(
            "Expected roundings that an int8 file has too. Received: outputs of the layers "
            f"{planner.unused()}, which tfmot rounds, and LiteRT does not or to a range of its "
            "own. Quantize the float model anew with tfcompress.quantize."
        )
    quantized = build_quantized(planner, plain)
    quantized.plan = the_plan
    _set_limits(quantized, found)
    _set_ranges(quantized, planner.taken, calibration_data)
    return quantized


def _set_limits(quantized: QuantizedModel, found: FoundQuantization) -> None:
    """Gives the kernels the limits by which tfmot rounds them."""
    for name, (limit, _) in found.kernels.items():
        layer = quantized.get_layer(name)
        transform = layer.transformed.of_type(FakeQuantizeWeights)["kernel"]
        quantizer, grid = transform.scheme.quantizer, transform.grid
        kernel = next(k.variable for k in layer_kernels(layer) if k.spec.name == "kernel")
        largest = quantizer.largest(tf.cast(kernel.value, tf.float32), grid)
        transform.state["limit"].assign(_spread(limit, grid))
        transform.state["largest"].assign(largest)


def _spread(limit: np.ndarray, grid: Any) -> np.ndarray:
    """Limits of tfmot in the shape of the scales."""
    if limit.ndim:
        limit = limit.reshape((1,) * (len(grid.shape) - 1) + (-1,))
    return np.broadcast_to(limit, grid.scale_shape)


def _set_ranges(
    quantized: QuantizedModel, taken: Mapping[str, Range], calibration_data: Any
) -> None:
    quantizers = [q for q in quantized.layers if isinstance(q, FakeQuantize)]
    missing = []
    for quantizer in quantizers:
        if quantizer.fixed_range is not None:
            continue
        found = taken.get(quantizer.name)
        if found is None or not found.is_known:
            missing.append(quantizer)
            continue
        scale, zero_point = found.parameters()
        quantizer.statistics.assign([found.low, found.high, 1.0])
        quantizer.state["scale"].assign(scale)
        quantizer.state["zero_point"].assign(zero_point)
    if missing and calibration_data is None:
        names = sorted({q.source or q.name for q in missing})
        raise ValueError(
            f"Expected a range of every tensor that an int8 operator reads or gives. Received: "
            f"none for {names}, which tfmot leaves in float. Pass calibration_data for them."
        )
    if calibration_data is not None:
        batches = calibration_batches(quantized, calibration_data)
        if missing:
            calibrate(quantized, batches, only=missing)
        quantized.calibration_inputs = first_samples(batches, _KEPT_SAMPLES)


def _float_layers(plain: keras.Model, found: FoundQuantization) -> dict[str, None]:
    """The layers that tfmot left alone and that compute."""
    left: dict[str, None] = {}
    for operation in Graph.from_model(plain).operations():
        moves = role(operation) in (Role.MOVE, Role.JOIN)
        if operation.name not in found.layers and not moves:
            left[operation.name] = None
    return left
