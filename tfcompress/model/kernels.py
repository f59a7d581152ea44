"""The table of kernels: which variables of a Keras layer are compressible, and their axes.

Every technique asks here which variables it may compress. Keras stores kernels under different
attributes (read-only properties, plain attributes, cells inside wrappers); the one thing that is
public and the same everywhere is the name of the variable, so that is what the table holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import keras
from keras import layers

from tfcompress.model.equations import Contraction, read_einsum
from tfcompress.model.keras_private import direct_sublayers


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """Where the axes of one kind of kernel are; by default those of a matrix (inputs, outputs).

    Attributes:
        name: Name of the variable (`variable.name`), such as `"kernel"`.
        output_axes: Axes that together enumerate the output channels. A depthwise kernel has
            two: input channel and depth multiplier.
        input_axes: Axes that together enumerate the input channels; empty where a kernel does
            not sum over channels (depthwise convolution, embedding).
    """

    name: str
    output_axes: tuple[int, ...] = (-1,)
    input_axes: tuple[int, ...] = (-2,)


_DENSE = (KernelSpec("kernel", (-1,), (-2,)),)
_TRANSPOSED = (KernelSpec("kernel", (-2,), (-1,)),)
_DEPTHWISE = (KernelSpec("kernel", (-2, -1), ()),)
_SEPARABLE = (
    KernelSpec("depthwise_kernel", (-2, -1), ()),
    KernelSpec("pointwise_kernel", (-1,), (-2,)),
)
_RECURRENT = (
    KernelSpec("kernel", (-1,), (-2,)),
    KernelSpec("recurrent_kernel", (-1,), (-2,)),
)

#: Layer class → its kernels. Looked up by exact class first, then by base class.
KERNELS: dict[type, tuple[KernelSpec, ...]] = {
    layers.Dense: _DENSE,
    layers.Conv1D: _DENSE,
    layers.Conv2D: _DENSE,
    layers.Conv3D: _DENSE,
    layers.Conv1DTranspose: _TRANSPOSED,
    layers.Conv2DTranspose: _TRANSPOSED,
    layers.Conv3DTranspose: _TRANSPOSED,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.SeparableConv1D: _SEPARABLE,
    layers.SeparableConv2D: _SEPARABLE,
    layers.Embedding: (KernelSpec("embeddings", (-1,), ()),),
    layers.LSTM: _RECURRENT,
    layers.GRU: _RECURRENT,
    layers.SimpleRNN: _RECURRENT,
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel variable of one layer.

    Attributes:
        layer: The layer that owns the variable (the innermost one in the table).
        variable: The latent float variable.
        spec: Its axes.
    """

    layer: keras.Layer
    variable: keras.Variable
    spec: KernelSpec

    @property
    def name(self) -> str:
        """`"<layer name>/<variable name>"`, or the bare layer name for a plain `kernel`."""
        if self.spec.name == "kernel":
            return self.layer.name
        return f"{self.layer.name}/{self.spec.name}"


def kernel_specs(layer: keras.Layer) -> tuple[KernelSpec, ...]:
    """Returns the kernel specs of `layer`; empty where the table does not know it."""
    if isinstance(layer, layers.EinsumDense):
        return (_einsum_spec(layer),)
    for cls in type(layer).__mro__:
        if cls in KERNELS:
            return KERNELS[cls]
    return ()


def has_bias(layer: keras.Layer) -> bool:
    """Whether a layer of the table adds a bias, built or not."""
    if isinstance(layer, layers.EinsumDense):
        return layer.bias_axes is not None
    return bool(getattr(layer, "use_bias", False))


def einsum_of(layer: layers.EinsumDense) -> Contraction | None:
    """The product that an EinsumDense computes; `None` where it is no matrix product."""
    spec = getattr(layer, "input_spec", None)
    return read_einsum(layer.equation, None if spec is None else spec.ndim)


def channels_are_last(layer: keras.Layer) -> bool:
    """Whether the last axis of what a layer gives has an output channel at each index."""
    if not isinstance(layer, layers.EinsumDense):
        return True
    product = einsum_of(layer)
    return (
        product is not None and len(product.columns) == 1 and product.output[-1:] == product.columns
    )


def layer_kernels(layer: keras.Layer) -> tuple[Kernel, ...]:
    """Returns the kernels of one built layer, without those of layers inside it.

    A recurrent layer's cell counts as the layer itself. An unbuilt layer has none.

    Raises:
        ValueError: A registered kernel that names no variable of the layer.
    """
    specs = kernel_specs(layer)
    if not specs:
        return ()
    owner = getattr(layer, "cell", layer)
    by_name = {variable.name: variable for variable in owner.weights}
    missing = [s.name for s in specs if s.name not in by_name]
    if missing and by_name and layer.built:
        raise ValueError(
            f"Expected kernels of {type(layer).__name__} that are variables of it, of the names "
            f"{sorted(by_name)}. Received: {missing}. Correct the KernelSpec, or the name= of "
            "add_weight."
        )
    return tuple(Kernel(layer, by_name[s.name], s) for s in specs if s.name in by_name)


def iterate_layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yields `layer` and every layer inside it once, depth first, models included."""
    seen: set[int] = set()
    stack = [layer]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        stack.extend(reversed(_sublayers(current)))


def compressible_kernels(model: keras.Layer) -> tuple[Kernel, ...]:
    """Returns every kernel of `model` that a technique may compress, in layer order.

    A model may answer for itself with a method `compressible_kernels()`: a `Distiller` names
    its student's kernels, so that the teacher is never touched. Nested and subclassed models
    and layers inside wrappers (`Bidirectional`, `MultiHeadAttention`) are searched too.
    """
    own = getattr(model, "compressible_kernels", None)
    if callable(own):
        return tuple(own())
    found: list[Kernel] = []
    seen: set[int] = set()
    for layer in iterate_layers(model):
        for kernel in layer_kernels(layer):
            if id(kernel.variable) not in seen:
                seen.add(id(kernel.variable))
                found.append(kernel)
    return tuple(found)


def _sublayers(layer: keras.Layer) -> list[keras.Layer]:
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    return direct_sublayers(layer)


def _einsum_spec(layer: layers.EinsumDense) -> KernelSpec:
    """Reads the axes of an EinsumDense kernel from its equation `inputs,kernel->outputs`."""
    left, output = layer.equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    return KernelSpec(
        "kernel",
        tuple(i for i, letter in enumerate(kernel) if letter in output and letter not in inputs),
        tuple(i for i, letter in enumerate(kernel) if letter in inputs and letter not in output),
    )
