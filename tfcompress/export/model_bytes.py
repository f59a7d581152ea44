"""The `.tflite` of a model as bytes, without writing or verifying it."""

from __future__ import annotations

import dataclasses

import keras

from tfcompress.export.conversion.converter import current_converter
from tfcompress.export.options import FileOptions, VerifyOptions
from tfcompress.export.steps.convert import convert
from tfcompress.export.steps.prepare import DEFAULT_SIGNATURE, Signature, prepare
from tfcompress.export.steps.write_exact import write_exact


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model, as it would be exported.

    Attributes:
        signature: The model in float32, with the names of its outputs in the file.
        data: The file.
    """

    signature: Signature
    data: bytes


def model_file(model: keras.Model) -> ModelFile:
    """Converts a model: a quantized one to int8, a float one to float.

    Raises:
        ValueError: What LiteRT cannot hold; ranges that are not known.
        ConversionError: The converter refused the model or crashed.
    """
    (signature,) = prepare(
        {DEFAULT_SIGNATURE: model}, None, None, allow_float=True, verify=VerifyOptions(samples=0)
    )
    options = FileOptions(allow_float=True)
    with current_converter() as converter:
        converted = convert([signature], converter, options)
        return ModelFile(signature, write_exact([signature], converted, options).data)
