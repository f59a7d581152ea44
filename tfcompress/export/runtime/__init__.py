"""Running `.tflite` files: LiteRT, XNNPACK, parity with Keras, latency."""
