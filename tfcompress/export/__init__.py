"""From a Keras model to a verified int8 `.tflite`."""

from tfcompress.export.conversion.converter import ConversionError, shared_converter
from tfcompress.export.report import ExportReport
from tfcompress.export.tflite import export_tflite

__all__ = ["ConversionError", "ExportReport", "export_tflite", "shared_converter"]
