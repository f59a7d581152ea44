"""The class of a quantized model: a functional model whose outputs keep their layers' names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.graph import producer
from tfcompress.model.keras_private import standard_inputs
from tfcompress.model.looped import LoopedGraph, can_loop
from tfcompress.model.rewrite import HasMetadata
from tfcompress.model.training import PrebuiltTrainingVariables
from tfcompress.model.user_class import (
    defines_call,
    functional_class,
    restore_attributes,
    saved_attributes,
    split_attributes,
)
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.original import Original
from tfcompress.quantization.placement.plan import Plan


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedModel(HasMetadata, PrebuiltTrainingVariables, keras.Model):
    """A functional model with quantizers in its graph.

    Keras names outputs, for losses and metrics by name, after the operation that gives them. That
    would be the quantizer; here it is the layer whose tensor it rounds, as in the given model.

    Args:
        inputs: As for `keras.Model`.
        outputs: As for `keras.Model`.
        name: As for `keras.Model`.
        output_names: Names of the flat outputs.
        recipe: The recipe that it was made by.

    Attributes:
        plan: The plan that it was made by; `None` on a model that was loaded or cloned.
        calibration_inputs: Some of the calibration data, one array per input, by which an export
            verifies itself; `None` where there was none, or on a model that was loaded.
        float_outputs: What the float model that was quantized gives for the first of them, one
            array per flat output, by which an export tells how the file agrees with it; `None`
            likewise.
        original: Gives the float model that was quantized, or `None` where it is gone or has been
            changed since; `None` itself likewise.
        recipe: The recipe that it was made by, as plain values; `None` without one. A `.keras` file
            holds it.
    """

    #: The user's model class that is mixed in; see `quantized_class`.
    keras_class: type | None = None

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        output_names: Iterable[str] | None = None,
        recipe: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        with deep_graph(outputs):
            super().__init__(inputs, outputs, name=name, **kwargs)
        self._class_arguments = {k: v for k, v in kwargs.items() if k != "trainable"}
        self.output_names = list(output_names or (_source(t) for t in self.outputs))
        self._plan: Plan | None = None
        self.recipe = recipe
        self._calibration_inputs: Callable[[], list[np.ndarray] | None] | None = None
        self._float_outputs: Callable[[], list[np.ndarray] | None] | None = None
        self.original: Original | None = None
        # Behind a function, for Keras would track its layers.
        self._looped: Callable[[], LoopedGraph] | None = None

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        """Runs the graph, the steps of recurrent layers as loops where TensorFlow traces it."""
        flat = tree.flatten(inputs)
        is_symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in flat)
        if not is_symbolic and mask is None and not kwargs and can_loop():
            looped = self._loops()
            if looped.loops:
                return looped.run(standard_inputs(self, inputs), training)
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def _loops(self) -> LoopedGraph:
        if self._looped is None:
            looped = LoopedGraph(self)
            self._looped = lambda: looped
        return self._looped()

    def get_config(self) -> dict[str, Any]:
        own: dict[str, Any] = {"output_names": list(self.output_names)}
        if self.recipe is not None:
            own["recipe"] = dict(self.recipe)
        if self.keras_class is None:
            return {**super().get_config(), **own}
        save = keras.saving.serialize_keras_object
        # Of a subclassed model that was made functional, its own class.
        named = getattr(self.keras_class, "subclassed", self.keras_class)
        own["keras_class"] = keras.saving.get_registered_name(named)
        own["class_arguments"] = save(dict(self._class_arguments))
        own.update(saved_attributes(self))
        return {**_functional(type(self)).get_config(self), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> QuantizedModel:
        config, attributes = split_attributes(config)
        name = config.pop("keras_class", None)
        if name is None:
            return super().from_config(config, custom_objects=custom_objects)
        found = keras.saving.get_registered_object(name, custom_objects)
        if found is None:
            raise ValueError(
                f"Expected the class {name.split('>')[-1]!r}, by which the model was made before "
                "it was quantized, among the registered classes. Received: none of that name. "
                "Decorate it with keras.saving.register_keras_serializable, or pass it in "
                "custom_objects."
            )
        arguments = keras.saving.deserialize_keras_object(config.pop("class_arguments"))
        mixed = quantized_class(found)
        make = _functional(mixed).from_config.__func__
        model = make(mixed, {**config, **arguments}, custom_objects=custom_objects)
        restore_attributes(model, attributes)
        return model

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """As of any Keras model; a `.tflite` is written by `tfcompress.export_tflite`.

        Raises:
            ValueError: The format `"litert"`: Keras would write a float file with operators that
                round, larger and slower than that of the float model.
        """
        if format == "litert":
            raise ValueError(
                "Expected tfcompress.export_tflite(model, path) for a .tflite of a quantized model."
                " Received: model.export(..., format='litert'), which would write a float file, "
                "larger than the float model's."
            )
        super().export(filepath, format=format, **kwargs)

    def make_training_variables(self, data: Any) -> None:
        # A train step of the user's own may want other variables, or other data.
        if self.keras_class is None:
            super().make_training_variables(data)

    def copy_metadata_from(self, model: keras.Model) -> None:
        if isinstance(model, QuantizedModel):
            self.plan = model.plan
            self.calibration_inputs = model.calibration_inputs
            self.float_outputs = model.float_outputs
            self.original = model.original
            self.recipe = model.recipe

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        return self._recipe()

    @recipe.setter
    def recipe(self, values: Mapping[str, Any] | None) -> None:
        # Behind a function: Keras would track its lists and dicts.
        self._recipe = lambda: values

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan

    @property
    def calibration_inputs(self) -> list[np.ndarray] | None:
        return None if self._calibration_inputs is None else self._calibration_inputs()

    @calibration_inputs.setter
    def calibration_inputs(self, arrays: list[np.ndarray] | None) -> None:
        # Behind a function: Keras would track the arrays as part of the model's state.
        self._calibration_inputs = lambda: arrays

    @property
    def float_outputs(self) -> list[np.ndarray] | None:
        return None if self._float_outputs is None else self._float_outputs()

    @float_outputs.setter
    def float_outputs(self, arrays: list[np.ndarray] | None) -> None:
        self._float_outputs = lambda: arrays


# The legacy HDF5 format does not hold the package that a class is registered under.
keras.saving.get_custom_objects()[QuantizedModel.__name__] = QuantizedModel


@functools.cache
def quantized_class(cls: type) -> type[QuantizedModel]:
    """The class of the quantized copy of a model of class `cls`: the user's methods are kept.

    It is saved as a `QuantizedModel` that names `cls`, so that only `cls` need be known to load it.
    """
    if defines_call(cls):
        cls = functional_class(cls)
    if cls is keras.Model or issubclass(cls, QuantizedModel):
        return QuantizedModel if cls is keras.Model else cls
    members = {
        "keras_class": cls,
        "__module__": QuantizedModel.__module__,
        "__qualname__": f"Quantized{cls.__name__}",
        "__doc__": f"A quantized `{cls.__name__}`.",
    }
    # The legacy HDF5 format saves a model under the bare name of its class.
    mixed = type(QuantizedModel.__name__, (QuantizedModel, cls), members)
    # Both are saved by one name, which loads as QuantizedModel.
    register = keras.saving.register_keras_serializable("tfcompress", "QuantizedModel")
    register(mixed)
    register(QuantizedModel)
    return mixed


def _functional(cls: type) -> Any:
    """Keras' class of functional models, which a model class inherits from."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("keras."))


def _source(tensor: keras.KerasTensor) -> str:
    call = producer(tensor)
    if call is None:
        return tensor.name
    operation, args, _ = call
    if not isinstance(operation, FakeQuantize):
        return operation.name
    # A range that is used in several places has one source of several.
    before = producer(args[0])
    name = args[0].name if before is None else before[0].name
    source = operation.source
    return source if source and name.startswith(source) else name
