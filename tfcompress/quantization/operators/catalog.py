"""Imports every family of operators, so that the registry is complete.

A new family of operators is one file and its line here.
"""

from tfcompress.quantization.operators import (  # noqa: F401
    activations,
    arithmetic,
    attention,
    averages,
    batch_norm,
    channel_affine,
    constants,
    einsum_dense,
    embedding,
    integer_inputs,
    joins,
    kernels,
    moves,
    prelu,
    products,
    recurrent,
    trained_affine,
    trained_sum,
    upsampling,
)
