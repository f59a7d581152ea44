"""A tf_keras model, with what tfmot wrapped around its layers, as plain data.

The data are JSON and NumPy arrays, so that a model can be described in one process and made anew
in another one: importing tfmot makes `tf.keras` the legacy Keras for the whole process. So this
module imports neither of the two, nor anything of tfcompress; run as a script it loads a file and
describes the model in it:

    python describe.py MODEL DESCRIPTION_FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Names in the folder of a description.
DESCRIPTION, ARRAYS = "description.json", "arrays.npz"


class CannotDescribe(Exception):
    """A model that has no description; its text says why."""


class Describer:
    """Describes models; the arrays are numbered and kept aside.

    Attributes:
        arrays: Number → array.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def model(self, model: Any) -> dict[str, Any]:
        """`{"class_name", "config", "layers": {name: layer}}` of a model.

        Args:
            model: A Sequential or Functional model of tf_keras, built.
        """
        try:
            content = json.loads(model.to_json())
        except NotImplementedError as error:
            raise CannotDescribe(
                f"Expected a Sequential or Functional model of tf_keras. Received: {model.name!r} "
                f"of type {type(model).__name__}, whose layers cannot be read. Express it with the "
                "functional API of tf_keras first."
            ) from error
        if not model.built:
            raise CannotDescribe(
                f"Expected a built model. Received: {model.name!r} without an input shape. Call "
                "model.build(input_shape) first."
            )
        layers = {layer.name: self.layer(layer) for layer in model.layers}
        entry = {"class_name": content["class_name"], "config": content["config"]}
        shape = getattr(model, "input_shape", None)
        return {**entry, "layers": layers, "input_shape": shape}

    def layer(self, layer: Any) -> dict[str, Any]:
        """The weights of a layer, and what tfmot added to it, by `"kind"`."""
        kinds = {cls.__name__ for cls in type(layer).__mro__}
        if "Functional" in kinds or "Sequential" in kinds:
            return {"kind": "model", "model": self.model(layer)}
        if "QuantizeLayer" in kinds:
            variables = getattr(layer, "quantizer_vars", None)
            return {
                "kind": "quantized_input",
                "range": self._quantizer(layer.quantizer, variables),
                "weights": [],
            }
        if "QuantizeWrapper" in kinds:
            return self._quantized(layer)
        if "PruneLowMagnitude" in kinds:
            return self._pruned(layer)
        if "ClusterWeights" in kinds:
            return self._clustered(layer)
        if "QuantizeAnnotate" in kinds:
            config = layer.quantize_config
            return {
                "kind": "annotated",
                "quantize_config": None if config is None else type(config).__name__,
                "weights": self._weights(layer.layer.weights),
            }
        return {"kind": "plain", "weights": self._weights(layer.weights)}

    # --- tfmot's wrappers --------------------------------------------------------------------

    def _quantized(self, wrapper: Any) -> dict[str, Any]:
        kernels = []
        for weight, quantizer, variables in wrapper._weight_vars:
            found = self._quantizer(quantizer, variables)
            kernels.append({"name": _name(weight), "range": found})
        activations = []
        for activation in wrapper._quantize_activations:
            before = getattr(activation, "_pre_activation_vars", None)
            after = getattr(activation, "_post_activation_vars", None)
            function = activation.activation
            name = getattr(function, "__name__", type(function).__name__)
            activations.append(
                {
                    "function": "linear" if name == "NoOpActivation" else name,
                    "before": self._quantizer(activation.quantizer, before),
                    "after": self._quantizer(activation.quantizer, after),
                }
            )
        quantizers = wrapper._output_quantizers
        output = None
        if quantizers:
            output = self._quantizer(quantizers[0], wrapper._output_quantizer_vars)
        # A call of the wrapper puts a tensor where the kernel was.
        weights = [weight for weight, _, _ in wrapper._weight_vars]
        weights += [w for w in wrapper.layer.weights if not any(w is other for other in weights)]
        return {
            "kind": "quantized",
            "weights": self._weights(weights),
            "kernels": kernels,
            "activations": activations,
            "output": output,
        }

    def _quantizer(self, quantizer: Any, variables: Any) -> dict[str, Any] | None:
        """Type, options and range of a quantizer; `None` where there is none."""
        if quantizer is None or type(quantizer).__name__ == "NoQuantizer":
            return None
        found: dict[str, Any] = {"type": type(quantizer).__name__, "bases": _bases(quantizer)}
        for option in ("num_bits", "per_axis", "symmetric", "narrow_range"):
            found[option] = getattr(quantizer, option, None)
        if found["type"] == "FixedQuantizer":
            found["low"] = self._add(np.float32(quantizer.init_min))
            found["high"] = self._add(np.float32(quantizer.init_max))
            return found
        if not variables:
            return None
        if "min_var" not in variables or "max_var" not in variables:
            found["low"] = found["high"] = None
            return found
        found["low"] = self._add(variables["min_var"].numpy())
        found["high"] = self._add(variables["max_var"].numpy())
        if "sparsity_mask" in variables:
            found["mask"] = self._add(variables["sparsity_mask"].numpy())
        return found

    def _pruned(self, wrapper: Any) -> dict[str, Any]:
        weights = list(wrapper.layer.weights)
        masks = {}
        for weight, mask, _ in wrapper.pruning_vars:
            index = next(i for i, w in enumerate(weights) if w is weight)
            masks[str(index)] = self._add(mask.numpy())
        return {"kind": "pruned", "weights": self._weights(weights), "masks": masks}

    def _clustered(self, wrapper: Any) -> dict[str, Any]:
        # Assigns each weight to its nearest centroid, as every call does.
        wrapper.update_clustered_weights_associations()
        originals = wrapper.original_clusterable_weights
        weights = [w for w in wrapper.layer.weights if not any(w is o for o in originals.values())]
        codebooks = {}
        for index, name in sorted(wrapper.position_original_weights.items()):
            weights.insert(index, originals[name])
            codebooks[str(index)] = {
                "centroids": self._add(wrapper.cluster_centroids[name].numpy()),
                "assignments": self._add(wrapper.pulling_indices[name].numpy()),
                "values": self._add(np.asarray(wrapper.get_weight_from_layer(name))),
            }
        return {
            "kind": "clustered",
            "weights": self._weights(weights),
            "codebooks": codebooks,
            "per_channel": bool(wrapper.cluster_per_channel),
            "preserve_sparsity": bool(wrapper.preserve_sparsity),
        }

    # --- arrays ------------------------------------------------------------------------------

    def _weights(self, weights: Any) -> list[list[str]]:
        """`[name, number of its array]` of variables, in their order."""
        return [[_name(weight), self._add(weight.numpy())] for weight in weights]

    def _add(self, array: Any) -> str:
        number = str(len(self.arrays))
        self.arrays[number] = np.asarray(array)
        return number


def _name(variable: Any) -> str:
    """`"kernel"` of a variable `"dense/kernel:0"`."""
    return variable.name.split(":")[0].split("/")[-1]


def _bases(value: Any) -> list[str]:
    return [cls.__name__ for cls in type(value).__mro__]


def _scopes() -> Iterator[Any]:
    """The scopes in which files of tfmot load; none where tfmot is not installed."""
    try:
        import tensorflow_model_optimization as tfmot
    except ImportError:
        return
    yield tfmot.quantization.keras.quantize_scope()
    yield tfmot.sparsity.keras.prune_scope()
    yield tfmot.clustering.keras.cluster_scope()


def load(path: str) -> Any:
    """The tf_keras model in a file. It makes `tf.keras` the legacy Keras."""
    import tf_keras

    with contextlib.ExitStack() as stack:
        for scope in _scopes():
            stack.enter_context(scope)
        return tf_keras.models.load_model(path, compile=False)


def main(path: str, folder: str) -> int:
    """Writes the description of the model in a file, or the line that says why there is none."""
    describer = Describer()
    content: dict[str, Any]
    try:
        content = {"model": describer.model(load(path))}
    except CannotDescribe as error:
        content = {"error": str(error)}
    except Exception as error:
        content = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    arrays: dict[str, Any] = dict(describer.arrays)
    np.savez(pathlib.Path(folder, ARRAYS), **arrays)
    pathlib.Path(folder, DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    raise SystemExit(main(*sys.argv[1:]))
