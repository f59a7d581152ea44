"""The weight transform of kernels: they are rounded to their codes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.keras_private import adding_variables
from tfcompress.model.kernels import einsum_of, kernel_specs
from tfcompress.model.linking import Links
from tfcompress.model.transforms import (
    FAKE_QUANT,
    IntegerSum,
    RoundedKernel,
    WeightCall,
    WeightTransform,
)
from tfcompress.quantization.fake_quant.affine import LARGEST_BIAS, coarser_scale
from tfcompress.quantization.fake_quant.held_weights import HeldWeights, add_held, with_held
from tfcompress.quantization.fake_quant.int16_arithmetic import convolution_codes, dense_codes
from tfcompress.quantization.fake_quant.integer_sums import int16_sum, integer_sum
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.fake_quant.variables import add_variables
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid
from tfcompress.quantization.placement.upstream import upstream_quantizer
from tfcompress.quantization.schemes import WeightScheme, scheme_config, scheme_from_config

# Numbers of a kernel whose rounding takes longer than tracing it.
_LARGE = 2**22


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantizeWeights(WeightTransform):
    """Rounds a kernel to its codes by the quantizer of a scheme.

    A kernel with one scale is rounded as the runtime will see it: with the batch norm after it
    folded in.

    Args:
        scheme: Options and quantizer.
        can_hold: Whether single weights can be held at a code (see `allow_holding`).

    Attributes:
        grid: What the quantizer is told of the kernel.
        state: The quantizer's variables by name.
        held: Which weights are held at a code; `None` where none can be.
    """

    order = FAKE_QUANT

    def __init__(
        self,
        scheme: WeightScheme | dict[str, Any] | None = None,
        can_hold: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.scheme = scheme_from_config(WeightScheme, scheme or WeightScheme())
        self._can_hold = can_hold
        self.held: HeldWeights | None = None
        # Call index → the batch norm that the runtime folds into the kernel in that call, and
        # → the quantizer of what the layer reads.
        self._folded = Links()
        self._inputs = Links()
        # Call index → the quantizer that rounds the layer's sum, past a fused ReLU.
        self._sum_quantizers = Links()

    @property
    def num_bits(self) -> int:
        """Bits of a code in the file."""
        return self.scheme.quantizer.num_bits(self.scheme)

    @property
    def keeps_zero(self) -> bool:
        return self.scheme.quantizer.holds_zero

    def attach(self, layer: keras.Layer, variable: keras.Variable) -> None:
        spec = next(s for s in kernel_specs(layer) if s.name == variable.name)
        rank = len(variable.shape)
        # Values that channels share (a codebook) stay shared under one scale alone. Batch norm then
        # scales the file's array of scales and leaves the codes as they are.
        chain = layer.transformed.chains[variable.name]
        self._one_scale = any(transform.one_scale for transform in chain)
        self.grid = KernelGrid(
            self.scheme,
            tuple(variable.shape),
            tuple(axis % rank for axis in spec.output_axes),
            self.scheme.per_channel and not self._one_scale,
        )
        self._layout = _output_layout(layer, variable)
        self._is_dense = isinstance(layer, keras.layers.Dense)
        # Rounding the folded kernel would put the values that channels share apart.
        self._rounds_folded = not self.scheme.per_channel and not self._one_scale
        super().attach(layer, variable)

    def custom_objects(self) -> dict[str, type]:
        return {type(o).__name__: type(o) for o in (self.scheme.observer, self.scheme.quantizer)}

    def build(self, shape: tuple[int, ...]) -> None:
        self.state = add_variables(self, self.scheme.quantizer.variables(self.grid))
        if self._can_hold:
            self.held = add_held(self, self.grid.shape)

    def allow_holding(self) -> HeldWeights:
        """Adds what weights are held by, where it is not there yet. Functions must be traced anew.

        Raises:
            ValueError: A quantizer whose levels move.
        """
        if self.held is not None:
            return self.held
        if not self.scheme.quantizer.has_fixed_codes:
            raise ValueError(
                "Expected a weight quantizer whose levels stay the same whole numbers, to hold "
                f"weights at them. Received: {self.scheme.quantizer!r}."
            )
        with adding_variables(self):
            self.held = add_held(self, self.grid.shape)
        return self.held

    def link(self, layer: keras.Layer, inputs: keras.KerasTensor, call_index: int) -> None:
        self._inputs.set(call_index, upstream_quantizer(inputs))

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        self._sum_quantizers.set(call_index, quantizer)

    def input_quantizer(self, call_index: int = 0) -> TensorQuantizer | None:
        """The quantizer of what the layer reads in that call; `None` where it reads float."""
        return self._inputs.get(call_index)

    def sum_quantizer(self, call_index: int = 0) -> TensorQuantizer | None:
        """The quantizer that rounds the layer's sum in that call, past a fused ReLU."""
        return self._sum_quantizers.get(call_index)

    def folded_batch_norm(self, call_index: int = 0) -> tuple[Any, int] | None:
        """`(batch norm, its call)` that the runtime folds into the kernel in that call."""
        return self._folded.get(call_index)

    @property
    def rounded_with(self) -> list[Any]:
        """The batch norms whose γ/σ decides which codes the kernel gets: those of one scale."""
        return [norm for norm, _ in self._folded.values()] if self._rounds_folded else []

    def set_folded(self, call_index: int, batch_norm: Any, batch_norm_call: int) -> None:
        """Called by the batch norm that the runtime folds into the kernel in that call."""
        self._folded.set(call_index, (batch_norm, batch_norm_call))

    def fit(self, kernel: np.ndarray) -> None:
        """Sets the quantizer's variables by the float kernel, when a model is quantized."""
        if not self.state:
            return
        factor = self.fold_factor(0)
        folded = kernel if factor is None else kernel * np.asarray(factor)
        for name, value in self.scheme.quantizer.fit(folded, self.grid).items():
            self.state[name].assign(value)

    @contextlib.contextmanager
    def in_int8(self) -> Iterator[None]:
        """For a while the kernel is rounded to 8 bits, as by the preset; no weight is held."""
        before = self.scheme, self.grid, self._rounds_folded, self.held
        scheme = WeightScheme()
        try:
            self.scheme = scheme
            self.grid = dataclasses.replace(
                self.grid, options=scheme, per_channel=not self._one_scale
            )
            self._rounds_folded, self.held = False, None
            yield
        finally:
            self.scheme, self.grid, self._rounds_folded, self.held = before

    def fold_factor(self, call_index: int) -> tf.Tensor | None:
        """γ/σ of the batch norm that one-scale kernels are rounded with, per output channel."""
        folded = self.folded_batch_norm(call_index)
        if folded is None or not self._rounds_folded:
            return None
        factor = tf.reshape(tf.stop_gradient(folded[0].factor()), self.grid.channel_shape)
        # A channel that batch norm switches off has nothing to round.
        return tf.where(factor == 0, 1.0, factor)

    def apply(self, value: tf.Tensor, call: WeightCall) -> tf.Tensor | RoundedKernel:
        quantizer = self.input_quantizer(call.call_index)
        # Sums of whole numbers are exact in float32 up to 2²⁴, as they are in int32, whatever order
        # they are added in. Rounded values would differ in the last bits.
        in_codes = call.in_codes and quantizer is not None and not call.training

        def rounded_kernel(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rounded, scale = self._quantized(value, call.call_index, bool(call.training))
            if call.bias is not None and quantizer is not None and not call.training:
                rounded, scale = self._with_room(rounded, scale, quantizer, call.bias)
            return (tf.round(rounded / scale) if in_codes else rounded), scale

        if call.training:
            return rounded_kernel(value)[0]
        rounded, scale = _in_little_memory(rounded_kernel, value)
        input_scale = tf.constant(0.0) if quantizer is None else quantizer.active_scale()
        integer_sum = self._integer_sum(scale, input_scale, call) if in_codes else None
        channel_scale = self._per_channel(scale)
        return RoundedKernel(
            rounded,
            channel_scale,
            input_scale,
            input_scale * channel_scale,
            self.folded_batch_norm(call.call_index) is not None,
            integer_sum,
            LARGEST_BIAS if quantizer is None else quantizer.largest_bias,
        )

    def _quantized(
        self, value: tf.Tensor, call_index: int, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The rounded kernel and its scale."""
        factor = self.fold_factor(call_index)
        folded = value if factor is None else value * factor
        rounded, scale = self.scheme.quantizer.quantize(folded, self.state, self.grid, training)
        if self.held is not None:
            rounded = with_held(self.held, folded, rounded, scale, training)
        if factor is not None:
            rounded, scale = rounded / factor, scale / tf.abs(factor)
        return rounded, scale

    def _with_room(
        self, rounded: tf.Tensor, scale: tf.Tensor, quantizer: TensorQuantizer, bias: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The kernel on coarser grids in channels whose bias overflows the int32 sum.

        These are channels that a penalty drives towards 0. Their largest code still changes the sum
        by far less than a step of its output.
        """
        if not self.grid.per_channel:
            return rounded, scale
        size = tf.reshape(tf.abs(bias), self.grid.channel_shape)
        coarser = coarser_scale(size, quantizer.active_scale(), scale, quantizer.largest_bias)
        found = tf.where(coarser > scale, tf.round(rounded / coarser) * coarser, rounded)
        return found, coarser

    def rounded(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`(codes, values, scale)` in inference, in the first call, without held weights.

        Args:
            value: The kernel behind the transforms before this one.

        Returns:
            The codes as float32; the kernel as it is rounded, with a batch norm folded in where
            `fold_factor` gives one; the scale of the codes.
        """
        factor = self.fold_factor(0)
        folded = value if factor is None else value * factor
        values, scale = self.scheme.quantizer.quantize(folded, self.state, self.grid, False)
        return tf.round(values / scale), folded, scale

    def _per_channel(self, scale: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.broadcast_to(scale, self.grid.channel_shape), [-1])

    def _integer_sum(
        self, scale: tf.Tensor, input_scale: tf.Tensor, call: WeightCall
    ) -> IntegerSum:
        """What turns the layer's input to codes, and its sums of codes back to values."""
        read, rounds = self._inputs.get(call.call_index), self._sum_quantizers.get(call.call_index)
        scale = tf.reshape(self._per_channel(scale), self._layout)
        if read is None or not read.is_int16:
            return integer_sum(scale, input_scale, rounds)
        bias = tf.constant(0.0) if call.bias is None else tf.reshape(call.bias, self._layout)
        is_folded = self.folded_batch_norm(call.call_index) is not None
        codes = dense_codes if self._is_dense else convolution_codes
        return int16_sum(
            scale, input_scale, rounds, bias, read.largest_bias, codes=None if is_folded else codes
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "scheme": scheme_config(self.scheme),
            "can_hold": self._can_hold or self.held is not None,
        }


def _in_little_memory(function: Callable[..., Any], tensor: tf.Tensor) -> Any:
    """`function(tensor)`; of a large tensor, eagerly, as a graph, whose operations share buffers.

    Eagerly every operation makes a tensor of its own, which lives as long as Python holds it.
    """
    size = tensor.shape.num_elements()
    if not tf.executing_eagerly() or size is None or size < _LARGE:
        return function(tensor)
    return tf.function(function, autograph=False)(tensor)


def _output_layout(layer: keras.Layer, kernel: keras.Variable) -> tuple[int, ...]:
    """Shape in which one number per output channel broadcasts against what a layer gives."""
    product = einsum_of(layer) if isinstance(layer, keras.layers.EinsumDense) else None
    if product is None:
        return (-1,)
    sizes = dict(zip(product.right, kernel.shape, strict=True))
    return tuple(sizes[c] if c in product.columns else 1 for c in product.output)
