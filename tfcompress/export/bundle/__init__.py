"""The files beside a `.tflite`: metadata and golden pairs for an app."""
