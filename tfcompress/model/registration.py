"""`register_kernel`: a user's own layer with weights enters the tables of kernels and MACs."""

from __future__ import annotations

import keras

from tfcompress.model.compressed import COMPRESSED, generate
from tfcompress.model.kernels import KERNELS, KernelSpec
from tfcompress.model.macs import COUNTERS, MacCounter, count_positions


def register_kernel(
    cls: type[keras.Layer], *kernels: KernelSpec, macs: MacCounter | None = None
) -> type[keras.Layer]:
    """Makes the weights of a layer class of your own known to every technique.

    Its kernels are then pruned, clustered, counted and listed like those of Keras' layers. To be
    quantized it needs `register_operator` as well, and to lose channels `register_rule`.

    Call it in the module that defines the layer, right after the class: a compressed subclass is
    generated and registered for saving here, so a saved model loads wherever that module is
    imported first.

    ```python
    tfc.register_kernel(Bottleneck, tfc.KernelSpec("reduce"), tfc.KernelSpec("expand"))
    ```

    Args:
        cls: The layer class. Its `get_config` must return every argument of its constructor.
            Subclasses share the kernels, but are not compressed: they may do anything with them.
        *kernels: One for each variable to compress, by the name that it was made with
            (`add_weight(name=...)`), with the axes of its output and input channels.
        macs: `macs(layer, input_shapes, output_shape)`, the multiply-accumulates of one call for
            shapes with a batch of 1. By default every kernel is multiplied once at every position
            of the output, all axes but the first and the last.

    Returns:
        `cls`.

    Raises:
        TypeError: `cls` is no layer class, or a kernel is no `KernelSpec`.
        ValueError: `cls` is known already, or no kernel is given. A kernel that names no variable
            of the layer is an error as soon as a built layer is looked at.
    """
    if not (isinstance(cls, type) and issubclass(cls, keras.Layer)):
        raise TypeError(f"Expected a layer class. Received: {cls!r}.")
    if cls in KERNELS or cls in COMPRESSED:
        raise ValueError(
            f"Expected a layer class that is not registered yet. Received: {cls.__name__}, whose "
            f"kernels are {[spec.name for spec in KERNELS.get(cls, ())]}."
        )
    if not kernels:
        raise ValueError(
            f"Expected a KernelSpec for every kernel of {cls.__name__}. Received: none."
        )
    wrong = [kernel for kernel in kernels if not isinstance(kernel, KernelSpec)]
    if wrong:
        raise TypeError(
            f"Expected a tfcompress.KernelSpec for every kernel of {cls.__name__}. Received: "
            f"{wrong!r}. The variable named {wrong[0]!r} is KernelSpec({wrong[0]!r})."
        )
    KERNELS[cls] = kernels
    COUNTERS[cls] = macs or count_positions
    generate(cls, keras.saving.get_registered_name(cls).rpartition(">")[0] or cls.__module__)
    return cls
