"""From a Keras model to a verified int8 `.tflite`."""

from tfcompress.export.conversion.converter import ConversionError, shared_converter
from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.report import ExportReport
from tfcompress.export.runtime.delegation import delegation
from tfcompress.export.runtime.latency import LatencyComparison, compare_latency
from tfcompress.export.runtime.runner import Runner
from tfcompress.export.tflite import export_tflite

__all__ = [
    "ConversionError",
    "ExportReport",
    "LatencyComparison",
    "Runner",
    "compare_latency",
    "delegation",
    "export_tflite",
    "gzip_size",
    "inspect_tflite",
    "shared_converter",
]
