"""Runs a quantized model, or its quantizers, as if nothing were rounded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

from tfcompress.model.compressed import is_compressed
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@contextlib.contextmanager
def observed_by(
    callbacks: Mapping[FakeQuantize, Callable[[tf.Tensor], None]],
) -> Iterator[None]:
    """The quantizers hand their tensors to a function each and pass them on unrounded."""
    try:
        for quantizer, callback in callbacks.items():
            quantizer.observe(callback)
        yield
    finally:
        for quantizer in callbacks:
            quantizer.observe(None)


@contextlib.contextmanager
def in_float(model: keras.Model) -> Iterator[None]:
    """The model computes what the float model computes that it was made of.

    Masks and codebooks stay; neither activations nor weights are rounded.
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    chains = [layer.transformed for layer in model.layers if is_compressed(layer)]
    try:
        for chain in chains:
            chain.rounds = False
        with observed_by(dict.fromkeys(quantizers, _pass_on)):
            yield
    finally:
        for chain in chains:
            chain.rounds = True


def _pass_on(values: tf.Tensor) -> None:
    pass
