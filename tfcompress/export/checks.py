"""What an export refuses: schemes that LiteRT cannot hold, missing ranges, unwanted float."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import keras

from tfcompress.export.flatbuffer.summary import FileSummary
from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph
from tfcompress.model.linking import Linked
from tfcompress.quantization.calibration.limits import (
    check_weights,
    extreme_operands,
    extreme_sums,
)
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.operators.registry import Role, role
from tfcompress.quantization.placement.from_graph import requested_floats, unplanned_calls
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.plan import activation_limits, weight_limits

_BOUNDARY_OPS = ("QUANTIZE", "DEQUANTIZE")


def check_limits(model: keras.Model) -> None:
    """Raises `ValueError` naming every layer whose scheme no `.tflite` can hold, and why."""
    problems: list[str] = []
    for operation in Graph.from_model(model).operations():
        if isinstance(operation, FakeQuantize):
            limits = activation_limits(operation.scheme)
            name = operation.source or operation.name
        elif is_compressed(operation):
            transforms = operation.transformed.of_type(FakeQuantizeWeights).values()
            limits = tuple(x for t in transforms for x in weight_limits(t.scheme))
            name = operation.name
        else:
            continue
        problems.extend(f"{name}: {limit}" for limit in limits)
    if problems:
        shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
        raise ValueError(
            f"Expected schemes that LiteRT can hold. Received: {shown}. Such a model trains, but "
            "it cannot be shipped as it is; tfcompress.plan says so before training."
        )


def check_numbers(model: keras.Model) -> None:
    """Raises `ValueError` naming the layers whose numbers the runtime cannot take.

    These are weights that are no finite numbers, int32 sums whose unit or bias does not fit (see
    `extreme_sums`) and operands far too large for their output (see `extreme_operands`): LiteRT
    would refuse the file, crash, or compute something else.
    """
    check_weights(model)
    problems = extreme_sums(model) + extreme_operands(model)
    if problems:
        shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
        raise ValueError(
            f"Expected weights and ranges of like size in every layer. Received: {shown}. "
            "Calibrate on real data, check the statistics of the batch norms, or set the layer to "
            "None in the configuration, which keeps it in float."
        )


def check_planned(model: keras.Model, *, allow_float: bool) -> None:
    """Raises `ValueError` naming the layers of a quantized model that have no place in its plan.

    A model that was cut between a layer and its quantizer is always refused, for the layer then
    gives, or reads, what the file cannot hold. Layers that were added to a quantized model compute
    in float, which is accepted with `allow_float`.
    """
    cut: dict[str, None] = {}
    added: dict[str, None] = {}
    for node in unplanned_calls(Graph.from_model(model)):
        is_quantized = isinstance(node.operation, Linked) and not _is_float_kernel(node.operation)
        (cut if is_quantized else added)[node.name] = None
    if cut:
        raise ValueError(
            "Expected quantizers that round what every quantized layer reads and gives. Received: "
            f"{model.name!r}, in which they do not for {', '.join(cut)}. If it was cut out of a "
            "quantized model, let it begin with the inputs of that model and end with outputs of "
            "quantizers, such as model.get_layer('<layer>_quantizer').output."
        )
    if added and not allow_float:
        raise ValueError(
            f"Expected quantizers that round what every layer gives. Received: {model.name!r}, in "
            f"which they do not for {', '.join(added)}. Layers that are added to a quantized model "
            "run in float, and so does the last layer of a part of one that ends before its "
            "quantizer: quantize the whole model, end the part with "
            "model.get_layer('<layer>_quantizer').output, or pass allow_float=True."
        )


def _is_float_kernel(layer: keras.Layer) -> bool:
    """Whether a layer computes with compressed weights in float."""
    return is_compressed(layer) and not layer.transformed.of_type(FakeQuantizeWeights)


def missing_ranges(model: keras.Model) -> list[FakeQuantize]:
    """The quantizers that have no range yet."""
    quantizers = [o for o in Graph.from_model(model).operations() if isinstance(o, FakeQuantize)]
    return [q for q in quantizers if float(q.scale.numpy()) <= 0]


def float_origins(
    summary: FileSummary,
    models: Mapping[str, keras.Model],
    output_names: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Float tensor of the file → the Keras layer that it comes from.

    Args:
        summary: The file.
        models: Signature key → model.
        output_names: Signature key → the file's names of the model's flat outputs.
    """
    layers = {op.name for m in models.values() for op in Graph.from_model(m).operations()}
    # The file names an output after the signature; the model knows which layer gives it.
    outputs = {}
    for signature in summary.signatures:
        values = Graph.from_model(models[signature.key]).flat_outputs
        for name, value in zip(output_names[signature.key], values, strict=True):
            outputs[signature.subgraph, signature.outputs[name].index] = value.name
    found = {}
    for tensor in summary.float_tensors:
        by_output = outputs.get((tensor.subgraph, tensor.index), "")
        found[tensor.name.split(";")[0]] = _origin(tensor.name, layers) or by_output
    return found


def check_floats(
    origins: Mapping[str, str],
    summary: FileSummary,
    models: Mapping[str, keras.Model],
    float_io: bool,
) -> None:
    """Raises `ValueError` for float operators that the configuration does not ask for, by layer."""
    wanted = set()
    converting = {
        o.name
        for model in models.values()
        for o in Graph.from_model(model).operations()
        if isinstance(o, ToFloat)
    }
    for model in models.values():
        graph = Graph.from_model(model)
        asked = requested_floats(graph)
        wanted.update(asked)
        if asked:
            # An operator that only moves values moves those of a float layer in float.
            wanted.update(o.name for o in graph.operations() if role(o) is Role.MOVE)
    culprits: dict[str, None] = {}
    for op in summary.ops:
        if op.name in _BOUNDARY_OPS:
            continue
        tensors = [summary.tensor(i, op.subgraph) for i in (*op.inputs, *op.outputs) if i >= 0]
        floats = [t for t in tensors if t.dtype.startswith(("float", "bfloat"))]
        if floats:
            names = [origins.get(t.name.split(";")[0], "") for t in reversed(floats)]
            layer = next((name for name in names if name), "")
            if layer not in wanted | converting:
                culprits[f"{op.name} of {layer or _likely(floats[-1].name, models)}"] = None
    if not (wanted or converting) and not float_io and not culprits and origins:
        culprits = {layer or _likely(name, models): None for name, layer in origins.items()}
    if culprits:
        raise ValueError(
            f"Expected no float tensor in the file. Received: {', '.join(culprits)}. Set these "
            "layers to None in the configuration if they may stay in float, or pass "
            "allow_float=True; tfcompress.plan tells why a layer has no int8 form."
        )


def _likely(tensor: str, models: Mapping[str, keras.Model]) -> str:
    """For a tensor of no known layer: its name, and the layers that have no int8 form."""
    nodes = [node for model in models.values() for node in Graph.from_model(model).nodes]
    floats = {
        node.name: None
        for node in nodes
        if role(node.operation) is None and not isinstance(node.operation, FakeQuantize | KeepFloat)
    }
    return f"{', '.join(floats)} (tensor {tensor!r})" if floats else tensor


def _origin(tensor_name: str, layers: set[str]) -> str:
    for part in tensor_name.replace(";", "/").split("/"):
        # TensorFlow counts the calls of a shared layer in its names.
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return name
    return ""
