"""Sources of the tensors that losses compare: a model, a callable or a cache, run once a step."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.distillation.activations import activation_of, origins, output_activations
from tfcompress.distillation.features import FeatureTap, pick_output
from tfcompress.distillation.losses.base import TensorInfo
from tfcompress.model.kernels import iterate_layers

#: The keys of the `x` that carries a cached teacher's outputs with the student's inputs.
STUDENT_INPUTS, TEACHER_OUTPUTS = "student_inputs", "teacher_outputs"

_NUMPY_REMEDY = (
    "A callable runs inside the train step, on symbolic tensors: wrap NumPy code, and "
    "`model.predict`, in `tf.numpy_function` and give the shape of its result with "
    "`tf.ensure_shape`, or compute the outputs once with `TeacherCache`."
)

#: Tensors by the key of a loss: a layer's name, an output's key or index, `None` for all.
Features = dict[Any, Any]


def split_inputs(x: Any) -> tuple[Any, Any]:
    """Splits `x` into the student's inputs and the cached teacher outputs (`None` without)."""
    if isinstance(x, dict) and set(x) == {STUDENT_INPUTS, TEACHER_OUTPUTS}:
        return x[STUDENT_INPUTS], x[TEACHER_OUTPUTS]
    return x, None


def input_specs(model: keras.Layer) -> Any:
    """The inputs of a model as `tf.TensorSpec`, in its own structure; `None` where unknown."""
    try:
        structure = model.inputs if isinstance(model, keras.Sequential) else model.input
    except (AttributeError, ValueError):
        return None
    if structure is None:
        return None
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        structure = structure[0]
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), structure)


class Source(abc.ABC):
    """One side of the losses.

    Args:
        runner: What runs.
        keys: What the losses compare, besides the outputs.
        role: `"teacher"` or `"student"`, for error messages.
    """

    def __init__(self, runner: Any, keys: Sequence[Any], role: str):
        self.runner = runner
        self.role = role
        self.keys = tuple(k for k in dict.fromkeys(keys) if k is not None)

    @property
    def supports_jit(self) -> bool:
        """Whether XLA can compile it."""
        return True

    @abc.abstractmethod
    def __call__(self, inputs: Any, cached: Any = None, training: bool = False) -> Features:
        """Runs once and returns the outputs (under `None`) and the features."""

    @abc.abstractmethod
    def activations(self, key: Any) -> list[str | None]:
        """The activation of each tensor under `key`; any other length means unknown."""

    def output_index(self, key: Any) -> int | None:
        """The place of the output that the layer `key` makes, in flatten order, if it does."""
        return None

    def specs(self, inputs: Any) -> Features:
        """What a run on `inputs` (`tf.TensorSpec`s) gives, as `TensorInfo` by key."""
        return self.describe(trace(self, inputs))

    def describe(self, tensors: Features) -> Features:
        """`TensorInfo` for tensors (or anything with a shape), in their structure, by key."""
        return {key: self._infos(key, value) for key, value in tensors.items()}

    def _infos(self, key: Any, value: Any) -> Any:
        flat = keras.tree.flatten(value)
        found = self.activations(key)
        if len(found) != len(flat):
            found = [None] * len(flat)
        what = f"the {self.role}'s {'output' if key is None else repr(key)}"
        pairs = zip(flat, found, strict=True)
        infos = [TensorInfo(_known_shape(tensor, what), kind, what) for tensor, kind in pairs]
        return keras.tree.pack_sequence_as(value, infos)


class ModelSource(Source):
    """A Keras model or layer."""

    def __init__(self, model: keras.Layer, keys: Sequence[Any], role: str):
        super().__init__(model, keys, role)
        self._tap = FeatureTap(model, self.keys)

    @property
    def supports_jit(self) -> bool:
        return all(layer.supports_jit for layer in iterate_layers(self.runner))

    def __call__(self, inputs: Any, cached: Any = None, training: bool = False) -> Features:
        outputs, features = self._tap(inputs, training)
        return {None: outputs, **features}

    def specs(self, inputs: Any) -> Features:
        graph_outputs = getattr(self.runner, "outputs", None)
        if not self.keys and graph_outputs and self.role == "student":
            is_sequential = isinstance(self.runner, keras.Sequential)
            return self.describe({None: graph_outputs if is_sequential else self.runner.output})
        return super().specs(inputs)

    def output_index(self, key: Any) -> int | None:
        operation = self._tap.operation(key)
        outputs = keras.tree.flatten(getattr(self.runner, "outputs", None) or [])
        found = [i for i, t in enumerate(outputs) if operation in origins(t)]
        return found[0] if len(found) == 1 else None

    def activations(self, key: Any) -> list[str | None]:
        found = output_activations(self.runner)
        operation = self._tap.operation(key)
        if operation is not None:
            output = getattr(operation, "output", None)
            return [activation_of(output)] if isinstance(output, keras.KerasTensor) else []
        if key is None or not found:
            # An ensemble has no graph of its own, but knows the outputs of its teachers.
            return found or list(getattr(self.runner, "activations", []))
        return [pick_output(keras.tree.pack_sequence_as(self.runner.output, found), key, "")]


class CallableSource(Source):
    """Any function of the inputs."""

    @property
    def supports_jit(self) -> bool:
        return getattr(self.runner, "supports_jit", True)

    def __call__(self, inputs: Any, cached: Any = None, training: bool = False) -> Features:
        outputs = self.runner(inputs)
        return {None: outputs, **picked(outputs, self.keys, f"the {self.role}")}

    def activations(self, key: Any) -> list[str | None]:
        return []


def source_of(runner: Any, keys: Sequence[Any], role: str) -> Source:
    """The source for a Keras model or a callable."""
    cls = ModelSource if isinstance(runner, keras.Layer) else CallableSource
    return cls(runner, keys, role)


def picked(outputs: Any, keys: Sequence[Any], owner: str) -> Features:
    """Several outputs by key or index."""
    return {key: pick_output(outputs, key, owner) for key in keys}


def trace(source: Source, inputs: Any) -> Features:
    """Runs `source` on placeholders: shapes without arithmetic, and nothing is assigned.

    Raises:
        ValueError: If it does not run on such inputs.
    """
    keys = (None, *source.keys)

    # A list, since TensorFlow sorts the keys of a dict and ours do not compare.
    def run(x: Any) -> list[Any]:
        features = source(x)
        return [features[key] for key in keys]

    try:
        concrete = tf.function(run, autograph=False).get_concrete_function(inputs)
    except Exception as error:
        shapes = keras.tree.map_structure(lambda s: tuple(s.shape), inputs)
        remedy = "" if isinstance(source.runner, keras.Layer) else f" {_NUMPY_REMEDY}"
        raise ValueError(
            f"Expected a {source.role} that runs on the student's inputs, of shape {shapes}, and "
            f"has what the losses name. Received: {error}{remedy}"
        ) from error
    return dict(zip(keys, concrete.structured_outputs, strict=True))


def _known_shape(tensor: Any, what: str) -> tuple[int | None, ...]:
    if getattr(tensor.shape, "rank", 0) is None:
        raise ValueError(
            f"Expected {what} to have a known number of axes. Received: {tensor}. {_NUMPY_REMEDY}"
        )
    return tuple(tensor.shape)
