"""Quantization of gradients: between workers, and inside the backward pass."""
