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
    clipping,
    constants,
    convolutions,
    einsum_dense,
    elementwise,
    embedding,
    fills,
    functions,
    integer_inputs,
    joins,
    kernels,
    moments,
    moves,
    normalization,
    pooling,
    prelu,
    products,
    recurrent,
    reductions,
    resizing,
    selection,
    sequence_wrappers,
    steps,
    trained_affine,
    trained_sum,
    upsampling,
)
