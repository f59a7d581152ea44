"""Second step: lowered functions, and the file as the converter writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from tfcompress.export.conversion.converter import Converter
from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.export.lowering.lower import Lowered, lower
from tfcompress.export.options import FileOptions
from tfcompress.export.steps.prepare import Signature
from tfcompress.model.rewrite import as_float32
from tfcompress.model.strip import strip
from tfcompress.model.subclassed import functional_for


@dataclasses.dataclass(frozen=True)
class Converted:
    """What the converter wrote.

    Attributes:
        data: The file.
        lowered: Signature key → lowered model.
        is_quantized: Whether anything in the file is quantized.
        float_data: The same model as a dense float file; `None` where it was not converted.
    """

    data: bytes
    lowered: Mapping[str, Lowered]
    is_quantized: bool
    float_data: bytes | None

    @property
    def kernels(self) -> list[BakedKernel]:
        """What the int8 kernels of all signatures must be in the file."""
        return [kernel for low in self.lowered.values() for kernel in low.kernels]


def convert(
    signatures: Sequence[Signature], converter: Converter, options: FileOptions
) -> Converted:
    """Lowers and converts all signatures into one file.

    Raises:
        ValueError: An input of unknown shape, a quantizer without a range.
        ConversionError: The converter refused the model or crashed.
    """
    converter.start()
    as_dense = options.pointwise_as_dense
    lowered = {
        s.key: lower(
            s.model,
            s.output_names,
            pointwise_as_dense=as_dense,
            float_io=options.float_io,
            num_signatures=len(signatures),
        )
        for s in signatures
    }
    is_quantized = any(low.kernels or not low.float_inputs for low in lowered.values())
    is_sparse = options.sparse_encoding and not is_quantized
    data = converter.convert(lowered, sparse=is_sparse, weights=options.weights)
    for low in lowered.values():
        low.release()
    # A float file is its own float size; a smaller one is compared with a plain one.
    is_smaller = is_sparse or options.weights is not None
    float_data = None if is_quantized or is_smaller else data
    if is_smaller or (options.compare_float and is_quantized):
        plain = {s.key: lower(_float_model(s), s.output_names) for s in signatures}
        float_data = converter.convert(plain)
    return Converted(data, lowered, is_quantized, float_data)


def _float_model(signature: Signature) -> keras.Model:
    """The float model to compare sizes with: the given one, whose weights are not rounded."""
    if signature.float_model is None:
        return strip(signature.model)
    return as_float32(functional_for(signature.float_model))
