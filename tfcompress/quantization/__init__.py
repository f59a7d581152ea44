"""Quantization-aware training: schemes, observers, quantizers, and what LiteRT does at each op."""
