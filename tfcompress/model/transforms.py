"""Weight transforms: from the latent float variable to the weights that a layer computes with.

The latent variable trains; a forward pass reads it through the chain keep-mask → cluster →
fake-quant. The order is a property of the transforms (`order`), not of who called which technique
first, and gradients go straight through. A technique brings its own subclass; this module knows
only the chain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

#: Orders in the chain. Rounding what belongs to a kernel (its bias) comes after the kernel.
KEEP_MASK, CLUSTER, FAKE_QUANT = 0, 10, 20


@dataclasses.dataclass(frozen=True)
class WeightCall:
    """The call of a layer that its weights are transformed for.

    Attributes:
        call_index: Which call of a shared layer.
        in_codes: Whether the layer can compute in integer codes (see `IntegerSum`).
        training: Whether it is a call in training; `None` counts as inference.
        kernel: What the kernel's transforms tell of its codes, for those of the bias. `None` in
            training, and where the kernel is not rounded.
        bias: The layer's bias before its transforms, float32. `None` in training, and where no
            transform reads one.
    """

    call_index: int = 0
    in_codes: bool = False
    training: bool | None = None
    kernel: RoundedKernel | None = None
    bias: tf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class RoundedKernel:
    """A kernel on its grid, in inference: what a transform returns to tell of its codes.

    Attributes:
        value: The transformed kernel: its values, or its codes where `integer_sum` is set.
        scale: Scale of the codes per output channel, of shape (channels,).
        input_scale: Scale of what the layer reads; 0 where that is not known.
        bias_step: Value of one unit of the int32 sum, input_scale · scale.
        is_folded: Whether the runtime folds a batch norm into kernel and bias.
        integer_sum: How the layer computes in codes; `None` where it computes in values.
        largest_bias: Largest code of a bias, in units of the sum.
    """

    value: tf.Tensor
    scale: tf.Tensor
    input_scale: tf.Tensor
    bias_step: tf.Tensor
    is_folded: bool = False
    integer_sum: IntegerSum | None = None
    largest_bias: float = 2.0**30


@dataclasses.dataclass(frozen=True)
class IntegerSum:
    """How a layer computes in integer codes instead of values.

    Attributes:
        to_codes: The layer's input → what its `call` gets.
        from_sums: What its `call` gives → the layer's output.
        step: Value of one unit of the sum per output channel.
        adds_bias: Whether `from_sums` adds the bias, which the `call` must then not.
    """

    to_codes: Callable[[tf.Tensor], tf.Tensor]
    from_sums: Callable[[tf.Tensor], tf.Tensor]
    step: tf.Tensor
    adds_bias: bool = False


class WeightTransform(keras.Layer):
    """One link of the chain of one variable. Variables of a transform are never cast.

    Subclasses set `order` and implement `apply`.

    Attributes:
        one_scale: Whether weights of different output channels take the same values on purpose, so
            that rounding must use one scale for the whole kernel to keep it so.
        keeps_zero: Whether a weight that is 0 stays 0.
        makes_zeros: Whether it sets weights to 0 that must stay so.
    """

    order: int = 0
    built: bool

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("dtype", None)
        super().__init__(dtype="float32", **kwargs)

    @property
    def one_scale(self) -> bool:
        return False

    @property
    def keeps_zero(self) -> bool:
        return True

    @property
    def makes_zeros(self) -> bool:
        return False

    def attach(self, layer: keras.Layer, variable: keras.Variable) -> None:
        """Called once when the layer is built: create state, read axes from the kernel table."""
        if not self.built:
            self.build(tuple(variable.shape))
            self.built = True

    def link(self, layer: keras.Layer, inputs: keras.KerasTensor, call_index: int) -> None:
        """Called whenever the layer is called on a symbolic tensor (see `Linked`)."""

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        """Called by the quantizer that rounds the layer's output in that call."""

    def axes_of(self, state: keras.Variable, shape: tuple[int, ...]) -> dict[int, int]:
        """Which axis of a state runs along which axis of the variable, for removing channels.

        By default a state of the variable's rank (a mask, a scale) follows it in every axis in
        which it has its size.

        Args:
            state: One of `self.variables`.
            shape: The variable's.
        """
        if len(state.shape) != len(shape):
            return {}
        return {axis: axis for axis, size in enumerate(state.shape) if size == shape[axis]}

    def apply(self, value: tf.Tensor, call: WeightCall) -> tf.Tensor | RoundedKernel:
        """Returns the transformed float32 value, or a kernel with its codes.

        Args:
            value: The value so far, float32, of the variable's shape.
            call: The call of the layer.
        """
        raise NotImplementedError(
            f"Expected a transform that implements apply(value, call). Received: "
            f"{type(self).__name__}, which does not."
        )

    def custom_objects(self) -> dict[str, type]:
        """Classes by name that its configuration needs, which may not be registered with Keras."""
        return {}

    def get_build_config(self) -> None:
        """None: `attach` builds a transform, for the axes come from the layer."""

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return config


@keras.saving.register_keras_serializable(package="tfcompress")
class KeepMask(WeightTransform):
    """Multiplies by a saved mask of zeros and ones, so that pruned weights stay zero.

    The mask is state: it is saved with the layer, never inferred from zeros later on.
    """

    order = KEEP_MASK

    @property
    def makes_zeros(self) -> bool:
        return True

    def build(self, shape: tuple[int, ...]) -> None:
        self.mask = self.add_weight(
            name="mask", shape=shape, initializer="ones", trainable=False, autocast=False
        )

    def apply(self, value: tf.Tensor, call: WeightCall) -> tf.Tensor:
        return value * self.mask.value


class TransformedWeights(keras.Layer):
    """The chains of one layer. Calling it gives the transformed tensors by variable name.

    It is a float32 layer of its own because under mixed precision a variable read in the layer's
    `call` is already rounded to 16 bit.

    Attributes:
        chains: Variable name → its transforms, in their order.
        rounds: Whether transforms that round are applied. Calibration sets it to `False` for a
            while, to run the model in float.
    """

    def __init__(self, transforms: dict[str, list[WeightTransform]], **kwargs: Any) -> None:
        super().__init__(dtype="float32", name="transformed", **kwargs)
        self.rounds = True
        self.chains = {name: sorted(c, key=lambda t: t.order) for name, c in transforms.items()}
        # A function, because Keras would track variables held here a second time.
        self._read: Callable[[str], keras.Variable] | None = None
        self.built = True

    def attach(self, layer: keras.Layer, variables: dict[str, keras.Variable]) -> None:
        for name, chain in self.chains.items():
            if any(t.makes_zeros for t in chain) and not all(t.keeps_zero for t in chain):
                raise ValueError(
                    f"Expected a grid that holds 0 for the pruned weights of {layer.name!r}. "
                    "Received: a weight quantizer without the level 0. Give the layer another "
                    "quantizer, or quantize with preserve_sparsity=False."
                )
            for transform in chain:
                transform.attach(layer, variables[name])
        self._read = lambda name: variables[name]

    def link(self, layer: keras.Layer, inputs: keras.KerasTensor, call_index: int) -> None:
        for chain in self.chains.values():
            for transform in chain:
                transform.link(layer, inputs, call_index)

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        for chain in self.chains.values():
            for transform in chain:
                transform.link_rounding(quantizer, call_index)

    def call(
        self, call_index: int = 0, in_codes: bool = False, training: bool | None = None
    ) -> tuple[dict[str, tf.Tensor], RoundedKernel | None]:
        """Runs every chain, kernels before what depends on them.

        Args:
            call_index: Which call of a shared layer.
            in_codes: Whether the layer can compute in integer codes: a transform may then give
                codes instead of values (see `IntegerSum`).
            training: Filled in by Keras.

        Returns:
            `(values, rounded)`: the transformed float32 tensor of every variable by name, and the
            `RoundedKernel` of the kernel; `None` in training, and where no kernel is rounded.
        """
        if self._read is None:
            raise RuntimeError("Expected the layer to be built before its kernels are read.")
        call = WeightCall(call_index, in_codes, training)
        if "bias" in self.chains and not training:
            bias = tf.cast(self._read("bias").value, tf.float32)
            call = dataclasses.replace(call, bias=bias)
        values = {}
        for name in sorted(self.chains, key=_first_order):
            # A kernel of 16 bits too: grids, masks and centroids are of float32.
            value = tf.cast(self._read(name).value, tf.float32)
            for transform in self.chains[name]:
                if transform.order >= FAKE_QUANT and not self.rounds:
                    continue
                result = transform.apply(value, call)
                if isinstance(result, RoundedKernel):
                    call = dataclasses.replace(call, kernel=result)
                    result = result.value
                value = result
            values[name] = value
        return values, call.kernel

    def of_type(self, cls: type) -> dict[str, WeightTransform]:
        """Returns `{variable name: transform}` of the transforms that are a `cls`."""
        return {
            name: transform
            for name, chain in self.chains.items()
            for transform in chain
            if isinstance(transform, cls)
        }


def _first_order(name: str) -> tuple[bool, str]:
    # A bias is put on the grid that its kernel's scale gives, so it goes last.
    return name == "bias", name
