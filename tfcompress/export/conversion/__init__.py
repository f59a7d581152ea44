"""Conversion to `.tflite` bytes in a worker process."""
