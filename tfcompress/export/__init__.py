"""From a Keras model to a verified int8 `.tflite`."""
