"""Imports every family of operators, so that the registry is complete.

A new family of operators is one file and its line here.
"""

from tfcompress.quantization.operators import (  # noqa: F401
    activations,
    arithmetic,
    averages,
    batch_norm,
    channel_affine,
    constants,
    integer_inputs,
    joins,
    kernels,
    moves,
    prelu,
    trained_affine,
    trained_sum,
    upsampling,
)
