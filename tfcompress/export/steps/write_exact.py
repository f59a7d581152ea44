"""Third step: the plan, with all that was trained, written into the converted file."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from tfcompress.export.flatbuffer.float_kernels import (
    StoredKernel,
    check_float16,
    float_kernels,
    float_row,
    stored_kernels,
)
from tfcompress.export.flatbuffer.kernel_rows import is_found_again, layer_report
from tfcompress.export.flatbuffer.metadata_entries import with_entry
from tfcompress.export.flatbuffer.packing import packed_again
from tfcompress.export.flatbuffer.plan_check import check_plan
from tfcompress.export.flatbuffer.quantize import quantize_file
from tfcompress.export.flatbuffer.sparse import encode_sparse, sparse_float_layers
from tfcompress.export.flatbuffer.uint8_codes import with_uint8_inputs, with_uint8_outputs
from tfcompress.export.options import FileOptions
from tfcompress.export.pruned_size import dense_gzip_size
from tfcompress.export.report import LayerReport
from tfcompress.export.steps.convert import Converted
from tfcompress.export.steps.prepare import Signature
from tfcompress.files import input_codes


@dataclasses.dataclass(frozen=True)
class Written:
    """The file as it is shipped, and what is known of its kernels.

    Attributes:
        data: The file.
        layers: Every kernel.
        patched: Layers whose codes and scales a converter would not have found by itself.
        unverified: Layers whose int8 kernel is not in the file.
        sparse_layers: Layers whose zeros are left out.
        dense_num_bytes: For a pruned model, the size of the file with its zeros; else `None`.
        dense_gzip_bytes: For a pruned model, see `dense_gzip_size`; else `None`.
        notes: What readers of its metadata must know.
    """

    data: bytes
    layers: tuple[LayerReport, ...]
    patched: tuple[str, ...]
    unverified: tuple[str, ...]
    sparse_layers: tuple[str, ...]
    dense_num_bytes: int | None
    dense_gzip_bytes: int | None
    notes: tuple[str, ...] = ()


def write_exact(
    signatures: Sequence[Signature], converted: Converted, options: FileOptions
) -> Written:
    """Writes exact codes and scales, and leaves zeros out where that is asked for.

    Raises:
        ValueError: A file that cannot hold what was planned; `sparse_encoding` where no zeros can
            be left out.
    """
    sparse_encoding = options.sparse_encoding
    kernels = converted.kernels
    floats = float_kernels([s.model for s in signatures], kernels)
    data = converted.data
    planned = {key: low.planned for key, low in converted.lowered.items()}
    verified: list[tuple[str, str]] = []
    if any(planned.values()):
        allow_float = options.allow_float
        data = quantize_file(data, planned, float_io=options.float_io, allow_float=allow_float)
        verified = check_plan(data, planned, allow_float=allow_float)
    held: dict[str, StoredKernel] = {}
    if options.weights is not None:
        if options.weights == "float16":
            check_float16(data, floats)
        held = stored_kernels(data, floats)
        data = packed_again(data)
    stored = dict(verified)
    layers = (
        *(layer_report(kernel, stored) for kernel in kernels),
        *(float_row(kernel, held) for kernel in floats),
    )
    sparse_float = sparse_encoding and not converted.is_quantized
    dense_bytes = dense_gzip = None
    if any(layer.pruned for layer in layers):
        dense = converted.float_data if sparse_float and converted.float_data else data
        dense_bytes, dense_gzip = len(dense), dense_gzip_size(dense)
    sparse_layers: tuple[str, ...] = ()
    if sparse_float:
        sparse_layers = sparse_float_layers(data, floats)
    elif sparse_encoding:
        data, sparse_layers = encode_sparse(data, kernels)
    data = _with_code_types(data, converted, options)
    patched = tuple(kernel.layer for kernel in kernels if not is_found_again(kernel))
    missing = collections.Counter(kernel.layer for kernel in kernels)
    missing.subtract(layer for layer, _ in verified)
    unverified = tuple(missing.elements())
    return Written(data, layers, patched, unverified, sparse_layers, dense_bytes, dense_gzip)


def _with_code_types(data: bytes, converted: Converted, options: FileOptions) -> bytes:
    """The file with inputs and outputs of the types that are wanted, and what codes stand for."""
    all_uint8 = options.input_type == "uint8"
    uint8 = {key: low.uint8_inputs for key, low in converted.lowered.items() if low.uint8_inputs}
    if all_uint8 or uint8:
        data = with_uint8_inputs(data, None if all_uint8 else uint8)
    if options.output_type == "uint8":
        data = with_uint8_outputs(data)
    codes = {
        key: {
            name: (scale, zero_point + 128 * (all_uint8 or name in low.uint8_inputs))
            for name, (scale, zero_point) in low.input_codes.items()
        }
        for key, low in converted.lowered.items()
        if low.input_codes
    }
    return with_entry(data, input_codes.ENTRY, input_codes.to_bytes(codes)) if codes else data
