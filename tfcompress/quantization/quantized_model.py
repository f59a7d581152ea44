"""The class of a quantized model: a functional model whose outputs keep their layers' names."""

from __future__ import annotations

import keras

from tfcompress.model.graph import producer
from tfcompress.quantization.quantizers import FakeQuantize


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedModel(keras.Model):
    """A functional model with quantizers in its graph.

    Keras names outputs, for losses and metrics by name, after the operation that gives them. That
    would be the quantizer; here it is the layer whose tensor it rounds, as in the given model.

    Attributes:
        plan: The plan that it was made by; `None` on a model that was loaded or cloned.
        calibration_inputs: Some of the calibration data, one array per input, by which an export
            verifies itself; `None` where there was none, or on a model that was loaded.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.output_names = [_source(t) for t in self.outputs]
        self.plan = None
        self._calibration_inputs = None

    @property
    def calibration_inputs(self):
        return None if self._calibration_inputs is None else self._calibration_inputs()

    @calibration_inputs.setter
    def calibration_inputs(self, arrays) -> None:
        # Behind a function: Keras would track the arrays as part of the model's state.
        self._calibration_inputs = lambda: arrays


def _source(tensor: keras.KerasTensor) -> str:
    operation = producer(tensor)
    if operation is None:
        return tensor.name
    operation = operation[0]
    is_quantizer = isinstance(operation, FakeQuantize) and operation.source
    return operation.source if is_quantizer else operation.name
