"""From a quantized Keras model to the TensorFlow function that the converter gets."""
