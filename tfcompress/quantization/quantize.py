"""`quantize`: an ordinary Keras model in, the same model with fake-quant in its graph out."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from tfcompress.model.compressed import compress, is_compressed
from tfcompress.model.graph import Node, check_functional
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.kernels import has_bias, layer_kernels
from tfcompress.model.linking import Linked
from tfcompress.model.progress import Progress, Verbosity
from tfcompress.model.rewrite import rebuild
from tfcompress.model.subclassed import functional_for
from tfcompress.model.transforms import KeepMask, WeightTransform
from tfcompress.model.user_class import class_of_copies, copy_attributes
from tfcompress.quantization.calibration import equalization
from tfcompress.quantization.calibration.bias_correction import has_enough_samples
from tfcompress.quantization.calibration.float_outputs import float_outputs
from tfcompress.quantization.calibration.limits import check_weights
from tfcompress.quantization.calibration.ranges import calibrate, calibration_batches, first_samples
from tfcompress.quantization.config import QuantizationConfig, as_config
from tfcompress.quantization.fake_quant.biases import RoundBias
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators import catalog  # noqa: F401
from tfcompress.quantization.operators.registry import Role, keeps_codes, operator_of, role
from tfcompress.quantization.original import Original
from tfcompress.quantization.placement.plan import AS_CONFIGURED, Plan
from tfcompress.quantization.placement.planner import Planner
from tfcompress.quantization.quantized_model import QuantizedModel, quantized_class
from tfcompress.quantization.schemes import Scheme

# Of random float32 numbers one in some millions is 0. A mask takes as much memory as its kernel.
_FEWEST_ZEROS = 1e-5
# Calibration samples that a quantized model keeps, by which an export verifies itself.
_KEPT_SAMPLES = 256


def plan(model: keras.Model, config: QuantizationConfig | Scheme | str = "int8") -> Plan:
    """Says what `quantize` would do to every layer, without doing it. Print the result.

    Args:
        model: A built model, as for `quantize`.
        config: As for `quantize`.

    Raises:
        ValueError: As `quantize`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> [(entry.name, entry.weights) for entry in tfc.plan(model)]
        [('logits', 'int8 per channel')]
        >>> tfc.plan(model, tfc.QuantizationConfig(by_name={"logits": None})).float_layers
        {'logits': 'the configuration says so'}
    """
    return Planner(functional_for(model), as_config(config)).plan()


def quantize(
    model: keras.Model,
    config: QuantizationConfig | Scheme | str = "int8",
    *,
    calibration_data: Any = None,
    preserve_sparsity: bool = True,
    equalize: bool = False,
    bias_correction: bool | None = None,
    verbose: Verbosity = "auto",
) -> QuantizedModel:
    """Returns a copy of `model` that computes as its int8 file will: quantization-aware.

    Weights and activations pass fake quantization exactly where LiteRT rounds, with straight-
    through gradients, so the copy can be trained on with `compile` and `fit` and what it predicts
    is what the exported file computes. Nested models are inlined: their layers keep their names.

    Args:
        model: A built Sequential or Functional model, or a subclassed one, whose `call` is
            followed (see `as_functional`); it is left untouched.
        config: `"int8"`, another scheme, or a `QuantizationConfig`.
        calibration_data: Gives the ranges of activations: one array (or a list or dict of arrays)
            with a batch axis, a `tf.data.Dataset`, or an iterable of batches. Without it the first
            training batch does, and until then activations pass unrounded.
        preserve_sparsity: Keep weights that are exactly zero at zero, through training. Fewer than
            one in 100,000 of a kernel, as among random weights, are no pattern, and train. So does
            a kernel of nothing but zeros, from which residual branches and heads often start.
        equalize: First even out channel ranges between layers, which helps most where kernels have
            one scale. For int8 without training. With `calibration_data` also through a ReLU6, for
            the channels that do not reach its ceiling.
        bias_correction: Take the mean error that rounding brings into each channel out of the
            biases, or out of the moving means of batch norms, measured on `calibration_data`. By
            default where there are 16 calibration samples or more. Training goes on from there: it
            moves the means to those of the rounded layers anyway.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        A Keras model with the same inputs, outputs and layer names (see `plan` for what is taken
        apart), uncompiled.

    Raises:
        TypeError: Not a Keras model, or data that cannot be iterated.
        ValueError: An unbuilt or already quantized model (also by Keras), a subclassed one whose
            `call` cannot be followed (see `as_functional`), one with LoRA, or one in which nothing
            can be quantized; a layer that no `.tflite` can hold, in int8 or in float; a
            configuration key that matches nothing; calibration data of the wrong shape or with
            NaN, or none where `bias_correction` needs it.

    Warns:
        UserWarning: What an export will refuse: layers that stay in float although the
            configuration does not leave them in float (unless it is called with
            `allow_float=True`), schemes that LiteRT cannot hold, and inputs of unknown shape. Also
            where `equalize` is asked for and a ReLU6 keeps layers as they are.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
        >>> quantized = tfc.quantize(model, "int8", calibration_data=images)
        >>> quantized.compile("sgd", "mse")    # fit, evaluate, save as any Keras model
    """
    if bias_correction and calibration_data is None:
        raise ValueError(
            "Expected calibration_data to measure the error that bias_correction takes out. "
            "Received: None."
        )
    with Progress("quantize", 4, verbose) as progress:
        progress.stage("plan")
        original = model
        model = functional_for(model, calibration_data)
        check_plain_kernels(model)
        given = model
        check_functional(model)
        batches = None if calibration_data is None else calibration_batches(model, calibration_data)
        if equalize:
            model = equalization.equalize(model, batches=batches)
        planner = Planner(model, as_config(config))
        check_weights(model)
        the_plan = planner.plan()
        _check_something_quantized(planner, the_plan)
        _warn_of_floats(the_plan)
        _warn_of_limits(the_plan)
        progress.stage("build")
        quantized = build_quantized(planner, given, preserve_sparsity)
        quantized.plan = the_plan
        quantized.original = Original(original)
        if batches is not None:
            progress.stage("calibrate")
            if bias_correction is None:
                bias_correction = has_enough_samples(batches)
            calibrate(quantized, batches, correct_biases=bias_correction)
            progress.stage("outputs of the float model")
            quantized.calibration_inputs = first_samples(batches, _KEPT_SAMPLES)
            quantized.float_outputs = float_outputs(given, quantized.calibration_inputs)
    return quantized


def build_quantized(
    planner: Planner, given: keras.Model, preserve_sparsity: bool = True
) -> QuantizedModel:
    """Builds the model of a planner's graph; no range of an activation is known yet.

    Args:
        planner: What was decided. Its graph is used up.
        given: The model whose class and attributes the copy has.
        preserve_sparsity: As for `quantize`.
    """
    replacements, masks = _replacements(planner, preserve_sparsity)
    _number_calls(planner, replacements)
    model_class, arguments = class_of_copies(given)
    quantized = rebuild(
        planner.graph, replacements, model_class=quantized_class(model_class), **arguments
    )
    copy_attributes(given, quantized)
    for layer, mask in masks:
        layer.transformed.of_type(KeepMask)["kernel"].mask.assign(mask)
    fit_weight_quantizers(quantized)
    return quantized


def _check_something_quantized(planner: Planner, the_plan: Plan) -> None:
    """Refuses a model of which nothing runs in int8; warns where the configuration wants that."""
    if planner.quantizers:
        return
    reasons = the_plan.float_layers
    if AS_CONFIGURED in reasons.values():
        warnings.warn(
            f"Nothing of {planner.model.name!r} is quantized: the configuration leaves its layers "
            "in float.",
            stacklevel=3,
        )
        return
    found = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ValueError(
        "Expected a model in which something can be quantized. Received: "
        f"{planner.model.name!r}, of which nothing runs in int8 "
        f"({found or 'no layer computes with floating point values'}). "
        "tfcompress.export_tflite(model, path, allow_float=True) writes it in float."
    )


def _warn_of_floats(the_plan: Plan) -> None:
    """Says before training what an export without `allow_float` will refuse after it."""
    floats = the_plan.refused_floats
    if floats:
        found = "; ".join(f"{name}: {reason}" for name, reason in floats.items())
        warnings.warn(
            f"{len(floats)} of the layers stay in float: {found}. export_tflite refuses the model "
            "unless it is called with allow_float=True, or the configuration leaves these layers "
            "in float (None).",
            stacklevel=3,
        )


def _warn_of_limits(the_plan: Plan) -> None:
    """Says before training what no option of an export will accept after it."""
    found = [f"{name}: {', '.join(limits)}" for name, limits in the_plan.limits.items()]
    if found:
        shown = "; ".join(found[:8]) + ("; …" if len(found) > 8 else "")
        warnings.warn(
            f"No .tflite file can hold all of this model: {shown}. It trains, but export_tflite "
            "will refuse it.",
            stacklevel=3,
        )


def fit_weight_quantizers(model: keras.Model) -> None:
    """Sets the variables of every weight quantizer by its kernel."""
    for layer in model.layers:
        if not is_compressed(layer):
            continue
        for name, transform in layer.transformed.of_type(FakeQuantizeWeights).items():
            kernel = next(k.variable for k in layer_kernels(layer) if k.spec.name == name)
            transform.fit(kernel.numpy())


def _replacements(
    planner: Planner, preserve_sparsity: bool
) -> tuple[dict[Any, Any], list[tuple[Any, np.ndarray]]]:
    """What takes each operation's place, and the masks that are set once variables exist."""
    replacements, masks = dict(planner.decomposition.replaced), []
    for operation, nodes in planner.graph.calls_by_operation().items():
        if not any(planner.is_quantized(n) for n in nodes):
            continue
        layer = replacements.get(operation, operation)
        make = operator_of(operation).quantized
        scheme = planner.schemes[operation]
        if role(operation) is Role.KERNEL and scheme is not None:
            mask = _keep_mask(layer, _kernel_value(operation)) if preserve_sparsity else None
            chains = _chains(layer, scheme, mask is not None)
            replacements[operation] = compress(layer, chains)
            if mask is not None:
                masks.append((replacements[operation], mask))
        elif make is not None and (role(operation) is not Role.RELU or _read_codes(nodes)):
            replacements[operation] = make(operation)
    return replacements, masks


def _read_codes(nodes: list[Node]) -> bool:
    """Whether one of some calls reads what a quantizer rounds, not what it fuses with."""
    for node in nodes:
        maker = node.inputs[0].node
        while maker is not None and keeps_codes(maker.operation):
            maker = maker.inputs[0].node
        if maker is not None and isinstance(maker.operation, FakeQuantize):
            return True
    return False


def _kernel_value(layer: keras.Layer) -> np.ndarray:
    """The values of its kernel, where that is called `"kernel"`."""
    kernel = next(k for k in layer_kernels(layer) if k.spec.name == "kernel")
    return kernel.variable.numpy()


def _chains(layer: keras.Layer, scheme: Scheme, masked: bool) -> dict[str, list[WeightTransform]]:
    chains: dict[str, list[WeightTransform]] = {"kernel": [FakeQuantizeWeights(scheme.weights)]}
    if masked:
        chains["kernel"].append(KeepMask())
    if has_bias(layer):
        chains["bias"] = [RoundBias()]
    return chains


def _keep_mask(layer: keras.Layer, kernel: np.ndarray | None) -> np.ndarray | None:
    """The mask of the weights that are not zero.

    `None` where there is one already, and where the zeros are no pattern: hardly a weight is zero,
    or all are, as in a kernel that starts from zeros and has not been trained.
    """
    has_mask = is_compressed(layer) and layer.transformed.of_type(KeepMask)
    if kernel is None or has_mask:
        return None
    zeros = kernel.size - np.count_nonzero(kernel)
    is_pattern = _FEWEST_ZEROS * kernel.size < zeros < kernel.size
    return (kernel != 0).astype(np.float32) if is_pattern else None


def _number_calls(planner: Planner, replacements: dict) -> None:
    """Tells the calls of a shared layer apart, so that each finds its own input's scale."""
    for operation, nodes in planner.graph.calls_by_operation().items():
        is_linked = isinstance(operation, Linked) and not isinstance(operation, FakeQuantize)
        if (operation in replacements or is_linked) and len(nodes) > 1:
            for i, node in enumerate(nodes):
                node.kwargs = {**node.kwargs, "call_index": i}
