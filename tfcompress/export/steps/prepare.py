"""First step: models with every range known, and the samples to verify them on."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.export.bundle.files import bundle_names
from tfcompress.export.checks import (
    check_limits,
    check_numbers,
    check_planned,
    missing_ranges,
)
from tfcompress.export.options import VerifyOptions
from tfcompress.export.report import SYNTHETIC
from tfcompress.export.runtime.float_agreement import FloatReference
from tfcompress.export.runtime.parity import values_per_sample
from tfcompress.export.synthetic import synthetic_inputs
from tfcompress.files.writing import check_writable, make_temporary_folder
from tfcompress.model.graph import Graph, output_structure
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.labelled import labels_by_output, split_labels
from tfcompress.model.rewrite import as_float32, computes_in_16_bits
from tfcompress.model.shapes import with_input_shapes
from tfcompress.model.subclassed import functional_for
from tfcompress.quantization.calibration.float_outputs import float_outputs
from tfcompress.quantization.calibration.ranges import calibrate, calibration_batches, first_samples
from tfcompress.quantization.config import as_config
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.placement.planner import Planner
from tfcompress.quantization.placement.shippable import check_shippable
from tfcompress.quantization.quantize import quantize

DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs on which file and model are compared.

    Attributes:
        arrays: One array per input of the model, in its order.
        source: Where they come from.
        labels: Output → labels of `verify_data`, where it has them.
    """

    arrays: list[np.ndarray]
    source: str
    labels: Mapping[str, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Signature:
    """A model that is ready to be lowered.

    Attributes:
        key: Key of the signature in the file.
        model: In float32; quantized with every range known, or a float model that is wanted.
        output_names: Names of the model's flat outputs in the file.
        samples: Inputs to verify it on; `None` for none.
        float_reference: What the float model gives that it was quantized from; `None` where that
            is not known, or is not to be compared.
        float_model: The float model itself, where it was given.
        half_model: The quantized model in 16 bits that was given; `None` where it is in float32.
    """

    key: str
    model: keras.Model
    output_names: list[str]
    samples: Samples | None
    float_reference: FloatReference | None = None
    float_model: keras.Model | None = None
    half_model: keras.Model | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it is a quantized model, not one that is exported in float."""
        return _is_quantized(self.model)


def prepare(
    model: keras.Model | Mapping[str, keras.Model],
    calibration_data: Any,
    verify_data: Any,
    input_shapes: Mapping[str, Any] | None = None,
    *,
    float_model: keras.Model | Mapping[str, keras.Model] | None = None,
    allow_float: bool,
    weights: str | None = None,
    verify: VerifyOptions,
) -> tuple[Signature, ...]:
    """Calibrates what needs it and chooses the samples, for every signature.

    Raises:
        ValueError: No signature, data for a signature that is not there, a scheme or numbers that
            no file can hold, or a float model without calibration data.
    """
    if weights is not None:
        _check_float(model, weights)
    if input_shapes is not None:
        if weights is not None and calibration_data is not None:
            raise ValueError(
                f"Expected no calibration_data with weights={weights!r} and input_shapes, which "
                "needs none. Received both."
            )
        allow_float = allow_float or weights is not None
        return _at_shapes(model, calibration_data, verify_data, input_shapes, allow_float, verify)
    if isinstance(model, Mapping):
        models, calibration, to_verify = model, calibration_data or {}, verify_data or {}
        float_models: Any = float_model or {}
    else:
        models = {DEFAULT_SIGNATURE: model}
        float_models = {DEFAULT_SIGNATURE: float_model}
        calibration = {DEFAULT_SIGNATURE: calibration_data}
        to_verify = {DEFAULT_SIGNATURE: verify_data}
    if not models:
        raise ValueError("Expected at least one signature. Received: an empty dict.")
    _check_keys("calibration_data", calibration, models)
    _check_keys("verify_data", to_verify, models)
    _check_keys("float_model", float_models, models)
    signatures = []
    for key, given in models.items():
        is_float = weights is not None
        ready = _ready(given, None if is_float else calibration.get(key), is_float or allow_float)
        check_numbers(ready)
        samples = _samples(ready, given, to_verify.get(key), calibration.get(key), verify)
        float_model = float_models.get(key)
        reference = _float_reference(ready, float_model, samples, verify)
        if float_model is None and _is_quantized(ready) and ready is not given:
            # A float model that is quantized here is the one to compare with.
            float_model = None if _has_quantizers(given) else given
        is_scored = samples is not None and samples.labels is not None
        original = getattr(given, "original", None)
        if float_model is None and is_scored and original is not None:
            float_model = original()
        signature = Signature(key, ready, output_names(ready), samples, reference)
        is_half = _has_quantizers(given) and computes_in_16_bits(given)
        half_model = given if is_half else None
        signatures.append(
            dataclasses.replace(signature, float_model=float_model, half_model=half_model)
        )
    return tuple(signatures)


def _check_float(model: keras.Model | Mapping[str, keras.Model], weights: str) -> None:
    """Refuses `weights` for a quantized model, whose weights have a type already."""
    for each in model.values() if isinstance(model, Mapping) else (model,):
        if any(isinstance(layer, FakeQuantize) for layer in getattr(each, "layers", ())):
            raise ValueError(
                f"Expected a float model with weights={weights!r}. Received: the quantized "
                f"{each.name!r}. Pass the float model, or tfcompress.strip(model), which is the "
                "quantized one in float."
            )


def _at_shapes(
    model: keras.Model | Mapping[str, keras.Model],
    calibration_data: Any,
    verify_data: Any,
    input_shapes: Mapping[str, Any],
    allow_float: bool,
    verify: VerifyOptions,
) -> tuple[Signature, ...]:
    """One model at several input shapes, a signature for each."""
    if isinstance(model, Mapping) or not isinstance(input_shapes, Mapping) or not input_shapes:
        raise ValueError(
            "Expected one model and input_shapes as a dict of signature key → shape. Received: "
            f"{type(model).__name__} and input_shapes={input_shapes!r}."
        )
    to_verify = {} if verify_data is None else verify_data
    if not isinstance(to_verify, Mapping):
        raise ValueError(
            f"Expected verify_data as a dict by the keys of input_shapes {list(input_shapes)}. "
            f"Received: {type(verify_data).__name__}."
        )
    _check_keys("verify_data", to_verify, input_shapes)
    ready = _ready(model, calibration_data, allow_float)
    check_numbers(ready)
    kept = getattr(model, "calibration_inputs", None)
    signatures = []
    for key, shapes in input_shapes.items():
        fixed = with_input_shapes(ready, shapes)
        sizes = [tuple(tensor.shape[1:]) for tensor in fixed.inputs]
        fits = kept is not None and [array.shape[1:] for array in kept] == sizes
        given = model if fits else None
        samples = _samples(fixed, given, to_verify.get(key), None, verify)
        signatures.append(Signature(key, fixed, output_names(ready), samples))
    return tuple(signatures)


def _check_keys(name: str, data: Mapping, signatures: Mapping) -> None:
    if set(data) - set(signatures):
        raise ValueError(
            f"Expected `{name}` by the keys of the signatures {list(signatures)}. Received: "
            f"{list(data)}."
        )


def checked_path(path: str | os.PathLike) -> pathlib.Path:
    """Refuses, before minutes of work, a path that could not be written after them.

    Raises:
        ValueError: Another suffix than `.tflite`, a folder that does not exist or cannot be
            written, a name that is too long, or no folder for temporary files.
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite" or path.is_dir():
        raise ValueError(f"Expected a file path that ends in .tflite. Received: {str(path)!r}.")
    check_writable(path, bundle_names(path))
    make_temporary_folder().rmdir()
    return path


def output_names(model: keras.Model) -> list[str]:
    """A name for every flat output: the keys of a dict, else the names of the output layers."""
    outputs = output_structure(model)
    if isinstance(outputs, dict):
        # Nested or not, `flatten` goes through a dict in the order of its sorted keys.
        keys = sorted(outputs)
        counts = [len(tree.flatten(outputs[k])) for k in keys]
        if all(count == 1 for count in counts):
            return keys
    graph = Graph.from_model(model)
    names = list(graph.output_names)
    for i, value in enumerate(graph.flat_outputs):
        # A model that was cut out of a quantized one calls its outputs after their quantizers.
        operation = value.node.operation if value.node is not None else None
        if isinstance(operation, FakeQuantize) and names[i] == operation.name:
            names[i] = operation.source or names[i]
    if len(set(names)) != len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names)]
    return names


def _ready(model: keras.Model, calibration_data: Any, allow_float: bool) -> keras.Model:
    """The quantized float32 model with every range known, or the float model that is wanted."""
    model = functional_for(model, calibration_data)
    check_plain_kernels(model)
    if not _is_quantized(model):
        if calibration_data is None and allow_float:
            check_shippable(Graph.from_model(model).nodes)
            return as_float32(model)
        if calibration_data is None:
            raise ValueError(
                f"Expected a quantized model, or calibration_data to quantize one with. Received: "
                f"the float model {model.name!r} alone. allow_float=True writes a float file."
            )
        if allow_float and not Planner(model, as_config("int8")).quantizers:
            check_shippable(Graph.from_model(model).nodes)
            return as_float32(model)
        return as_float32(quantize(model, calibration_data=calibration_data))
    check_limits(model)
    check_planned(model, allow_float=allow_float)
    ready = as_float32(model)
    missing = missing_ranges(ready)
    if missing and calibration_data is not None:
        batches = calibration_batches(ready, calibration_data)
        calibrate(ready, batches, only=missing)
    return ready


def _is_quantized(model: keras.Model) -> bool:
    return any(isinstance(o, FakeQuantize) for o in Graph.from_model(model).operations())


def _has_quantizers(model: keras.Model) -> bool:
    return any(isinstance(layer, FakeQuantize) for layer in model.layers)


def _float_reference(
    ready: keras.Model,
    float_model: keras.Model | None,
    samples: Samples | None,
    options: VerifyOptions,
) -> FloatReference | None:
    """Outputs of the given float model, else of the one that `quantize` was called on.

    The latter were stored by `quantize`, so that neither training nor a change of the float model
    touches them.
    """
    if options.samples == 0 or not _is_quantized(ready):
        return None
    if float_model is not None and samples is not None:
        outputs = float_outputs(float_model, samples.arrays)
        if outputs is None:
            return None
        inputs = [x[: len(outputs[0])] for x in samples.arrays]
    else:
        kept = getattr(ready, "calibration_inputs", None)
        stored = getattr(ready, "float_outputs", None)
        if kept is None or stored is None:
            return None
        most = min(len(stored[0]), options.most_samples(values_per_sample(ready)))
        inputs, outputs = [x[:most] for x in kept], [y[:most] for y in stored]
    shapes = [tuple(value.shape)[1:] for value in Graph.from_model(ready).flat_outputs]
    found = [y.shape[1:] for y in outputs]
    if len(shapes) != len(found) or any(
        len(a) != len(b) or any(m not in (None, n) for m, n in zip(a, b, strict=True))
        for a, b in zip(shapes, found, strict=True)
    ):
        if float_model is None:
            # A model that was cut out of the quantized one has other outputs.
            return None
        raise ValueError(
            f"Expected a float_model with outputs of the shapes {shapes}. Received: {found}. Pass "
            "the model that quantize was called on."
        )
    return FloatReference([np.asarray(x) for x in inputs], outputs)


def _samples(
    ready: keras.Model,
    given: keras.Model | None,
    verify_data: Any,
    calibration_data: Any,
    options: VerifyOptions,
) -> Samples | None:
    if options.samples == 0:
        return None
    if verify_data is not None:
        x, labels = split_labels(verify_data, len(ready.inputs))
        arrays = first_samples(calibration_batches(ready, x), options.samples)
        if labels is None:
            return Samples(arrays, "verify_data")
        by_output = labels_by_output(labels, output_names(ready))
        count = len(arrays[0])
        return Samples(arrays, "verify_data", {n: array[:count] for n, array in by_output.items()})
    most = options.most_samples(values_per_sample(ready))
    if calibration_data is not None:
        # Arrays are cut into batches of 32.
        batches = calibration_batches(ready, calibration_data, limit=-(-most // 32))
        return Samples(first_samples(batches, most), "calibration data")
    kept = getattr(given, "calibration_inputs", None)
    if kept is not None:
        return Samples([array[:most] for array in kept], "calibration data")
    drawn = synthetic_inputs(ready, most)
    return None if drawn is None else Samples(drawn, SYNTHETIC)
