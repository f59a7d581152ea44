"""The layers of a description as layers of Keras 3, with masks, codebooks and weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat.tfmot.configs import layer_from
from tfcompress.compat.tfmot.fake_quant import Range, activation_range, kernel_limit
from tfcompress.compat.tfmot.operations import operation
from tfcompress.model.compressed import compress, compressed_class, is_compressed
from tfcompress.model.kernels import kernel_specs
from tfcompress.model.transforms import KeepMask
from tfcompress.sharing.codebook import Cluster

_SLICES = ("SlicingOpLambda",)
_FUNCTIONS = ("TFOpLambda", *_SLICES)
#: What tfmot puts around a one-dimensional separable convolution, by the start of their names.
_OWN_LAMBDAS: Mapping[str, Callable] = {
    "sepconv1d_expand": lambda x: ops.expand_dims(x, 1),
    "sepconv1d_squeeze": lambda x: ops.squeeze(x, 1),
}


@dataclasses.dataclass
class FoundQuantization:
    """What tfmot quantized, by the names of the new layers.

    Attributes:
        ranges: Layer or input → the range to which the tensor is rounded that it gives.
        kernels: Layer → `(limits, group)` of its kernel (see `LastValueWeights`).
        layers: The layers that tfmot wrapped or annotated.
        is_annotated: Whether the model is annotated, and not quantized yet.
    """

    ranges: dict[str, Range] = dataclasses.field(default_factory=dict)
    kernels: dict[str, tuple[np.ndarray, str]] = dataclasses.field(default_factory=dict)
    layers: set[str] = dataclasses.field(default_factory=set)
    is_annotated: bool = False

    def add_range(self, name: str, found: Range | None) -> None:
        """Notes the range of a tensor.

        Raises:
            ValueError: It has another one already.
        """
        if found is None:
            return
        if name in self.ranges:
            raise ValueError(
                f"Expected tensors that tfmot rounds once. Received: {name!r}, whose output it "
                "rounds twice. Leave one of the quantizers out."
            )
        self.ranges[name] = found


class LayerMaker:
    """Makes the layers of a model; their weights are set when they are built.

    Args:
        arrays: The arrays of the description.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.quantized = FoundQuantization()
        self._pending: list[Callable[[], None]] = []

    def make(self, entry: Mapping[str, Any], record: Mapping[str, Any]) -> list[Any]:
        """What is called one after the other in the place of a layer; nothing for an identity.

        Args:
            entry: The layer in the configuration of its model.
            record: What `Describer.layer` says of it.
        """
        kind, config = record["kind"], entry["config"]
        if kind == "quantized_input":
            return []
        if kind != "plain":
            entry = config["layer"]
            config = entry["config"]
        class_name, name = entry["class_name"], config["name"]
        if class_name in _FUNCTIONS:
            return [operation(config["function"], name)]
        for start, function in _OWN_LAMBDAS.items():
            if class_name == "Lambda" and name.startswith(start) and kind == "quantized":
                return [function]
        if kind == "quantized":
            return self._quantized(class_name, config, record)
        layer = layer_from(class_name, config)
        if kind == "annotated":
            self.quantized.is_annotated = True
            self.quantized.layers.add(name)
            if record["quantize_config"] is not None:
                raise ValueError(
                    "Expected layers that are annotated without a QuantizeConfig of their own. "
                    f"Received: {name!r} with {record['quantize_config']}. Pass what "
                    "quantize_apply gives."
                )
        elif kind == "pruned":
            layer = self._pruned(layer, record)
        elif kind == "clustered":
            layer = self._clustered(layer, record)
        self._set_weights_later(layer, record["weights"])
        return [layer]

    def finish(self) -> None:
        """Sets the weights, masks and codebooks of the layers, which are built by now."""
        for step in self._pending:
            step()

    # --- what tfmot added --------------------------------------------------------------------

    def _quantized(
        self, class_name: str, config: Mapping[str, Any], record: Mapping[str, Any]
    ) -> list[keras.Layer]:
        """A layer, and its activation as one of its own where tfmot rounds before it."""
        name = config["name"]
        config = dict(config)
        made: list[keras.Layer] = []
        after = None
        for activation in record["activations"]:
            function = activation["function"]
            before, after = (
                activation_range(activation[key], self.arrays, name) for key in ("before", "after")
            )
            config["activation"] = function
            if function not in ("linear", "relu"):
                config["activation"] = "linear"
                self.quantized.add_range(name, before)
                new = {"name": f"{name}_activation", "activation": function}
                made.append(layer_from("Activation", new))
        made.insert(0, layer_from(class_name, config))
        # Of a layer in float before one in int8 tfmot rounds the output alone.
        if record["kernels"] or not kernel_specs(made[0]):
            self.quantized.layers.update(layer.name for layer in made)
        self.quantized.add_range(made[-1].name, after)
        output = activation_range(record["output"], self.arrays, name)
        self.quantized.add_range(made[-1].name, output)
        weights = record["weights"]
        for kernel in record["kernels"]:
            limit, group, mask = kernel_limit(kernel, class_name, self.arrays, name)
            self.quantized.kernels[name] = (limit, group)
            if mask is not None:
                self._mask_weights(weights, kernel["name"], mask)
        self._set_weights_later(made[0], weights)
        return made

    def _mask_weights(self, weights: Sequence, name: str, mask: np.ndarray) -> None:
        """The zeros of pruning, which tfmot holds while it trains."""
        number = next(number for other, number in weights if other == name)
        self.arrays = {**self.arrays, number: self.arrays[number] * mask}

    def _pruned(self, layer: keras.Layer, record: Mapping[str, Any]) -> keras.Layer:
        masks = {int(index): self.arrays[number] for index, number in record["masks"].items()}
        numbers = [number for _, number in record["weights"]]
        arrays = dict(self.arrays)
        for index, mask in masks.items():
            arrays[numbers[index]] = arrays[numbers[index]] * mask
        self.arrays = arrays
        names = self._kernel_names(layer, masks, record, "pruned", "zeros")
        if names is None:
            return layer
        made = compress(layer, {name: [KeepMask()] for name in names.values()})

        def set_masks() -> None:
            for name, transform in made.transformed.of_type(KeepMask).items():
                index = next(i for i, found in names.items() if found == name)
                transform.mask.assign(masks[index])

        self._pending.append(set_masks)
        return made

    def _clustered(self, layer: keras.Layer, record: Mapping[str, Any]) -> keras.Layer:
        books = {
            int(index): {key: self.arrays[number] for key, number in book.items()}
            for index, book in record["codebooks"].items()
        }
        names = self._kernel_names(layer, books, record, "clustered", "codebooks")
        if names is None:
            numbers = [number for _, number in record["weights"]]
            values = {numbers[index]: book["values"] for index, book in books.items()}
            self.arrays = {**self.arrays, **values}
            return layer
        scope = "channel" if record["per_channel"] else "layer"
        keeps = record["preserve_sparsity"]
        chains: dict[str, list] = {}
        for index, name in names.items():
            k = books[index]["centroids"].shape[-1]
            chains[name] = [Cluster(int(k), scope=scope, preserve_sparsity=keeps)]
            if keeps:
                chains[name].append(KeepMask())
        made = compress(layer, chains)

        def set_codebooks() -> None:
            for index, name in names.items():
                book = books[index]
                transform = made.transformed.of_type(Cluster)[name]
                transform.set_codebook(book["centroids"].reshape(transform.centroids.shape))
                transform.assignments.assign(book["assignments"].astype(np.int32))
                if keeps:
                    mask = (book["values"] != 0).astype(np.float32)
                    made.transformed.of_type(KeepMask)[name].mask.assign(mask)
                    if not mask.all():
                        transform.pin_zero()

        self._pending.append(set_codebooks)
        return made

    def _kernel_names(
        self, layer: keras.Layer, found: Mapping, record: Mapping[str, Any], what: str, kept: str
    ) -> dict[int, str] | None:
        """Number among the weights → name of the kernel; `None` where the layer cannot hold it."""
        specs = {spec.name for spec in kernel_specs(layer)}
        names = {i: _own_name(record["weights"][i][0], specs) for i in found}
        if compressed_class(layer) is not None and set(names.values()) <= specs:
            return names
        if found:
            warnings.warn(
                f"{layer.name!r} of type {type(layer).__name__} comes with the values that it has, "
                f"{what}, but its {kept} are not kept in further training.",
                stacklevel=6,
            )
        return None

    # --- weights -----------------------------------------------------------------------------

    def _set_weights_later(self, layer: keras.Layer, weights: Sequence[Sequence[str]]) -> None:
        self._pending.append(lambda: set_weights(layer, [(n, self.arrays[i]) for n, i in weights]))


def set_weights(layer: keras.Layer, weights: Sequence[tuple[str, np.ndarray]]) -> None:
    """Sets the weights of a built layer by those of its counterpart in tf_keras.

    Args:
        layer: The layer.
        weights: Name and value of each, in tf_keras' order.

    Raises:
        ValueError: They are not the layer's.
    """
    if isinstance(layer, keras.layers.Normalization):
        weights = [(name, value) for name, value in weights if name != "count"]
    added = layer.transformed.variables if is_compressed(layer) else []
    own = [v for v in layer.weights if not any(v is other for other in added)]
    specs = {v.name for v in own}
    named = {_own_name(name, specs): value for name, value in weights}
    if len(named) == len(weights) == len(own) and set(named) == specs:
        pairs = [(v, named[v.name]) for v in own]
    else:
        pairs = list(zip(own, (value for _, value in weights), strict=False))
    wrong = len(own) != len(weights) or any(tuple(v.shape) != a.shape for v, a in pairs)
    if wrong:
        raise ValueError(
            f"Expected weights of {layer.name!r} of the shapes "
            f"{[tuple(v.shape) for v in own]}. Received: {[a.shape for _, a in weights]}."
        )
    for variable, value in pairs:
        variable.assign(value)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _own_name(name: str, names: set[str]) -> str:
    """Keras 3's name of a weight, of which it calls `depthwise_kernel` just `kernel`."""
    return "kernel" if name == "depthwise_kernel" and name not in names else name
