"""The class of a quantized model: a functional model whose outputs keep their layers' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.model.graph import producer
from tfcompress.model.rewrite import HasMetadata
from tfcompress.model.training import PrebuiltTrainingVariables
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
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
        float_layers: Names of the layers that the configuration left in float.

    Attributes:
        plan: The plan that it was made by; `None` on a model that was loaded or cloned.
        calibration_inputs: Some of the calibration data, one array per input, by which an export
            verifies itself; `None` where there was none, or on a model that was loaded.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        output_names: Iterable[str] | None = None,
        float_layers: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.output_names = list(output_names or (_source(t) for t in self.outputs))
        self.float_layers = None if float_layers is None else list(float_layers)
        self._plan: Plan | None = None
        self._calibration_inputs: Callable[[], list[np.ndarray] | None] | None = None

    def get_config(self) -> dict[str, Any]:
        own = {"output_names": list(self.output_names), "float_layers": self.float_layers}
        return {**super().get_config(), **own}

    def copy_metadata_from(self, model: keras.Model) -> None:
        if isinstance(model, QuantizedModel):
            self.plan = model.plan
            self.float_layers = model.float_layers
            self.calibration_inputs = model.calibration_inputs

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan
        if plan is not None:
            self.float_layers = plan.requested_floats

    @property
    def calibration_inputs(self) -> list[np.ndarray] | None:
        return None if self._calibration_inputs is None else self._calibration_inputs()

    @calibration_inputs.setter
    def calibration_inputs(self, arrays: list[np.ndarray] | None) -> None:
        # Behind a function: Keras would track the arrays as part of the model's state.
        self._calibration_inputs = lambda: arrays


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
