"""Fake quantization: the maths of codes and scales, and what rounds activations and kernels."""
