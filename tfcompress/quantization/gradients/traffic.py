"""How many bytes gradients take between workers, as floats and as codes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from tfcompress.model.workers import several_workers
from tfcompress.quantization.gradients.exchange import message_words
from tfcompress.quantization.gradients.optimizer import QuantizedGradients

_BYTES = 4


@dataclasses.dataclass(frozen=True)
class GradientTraffic:
    """What a worker sends in a step, for the gradients of a model.

    TensorFlow sums P floats over N workers in a ring, in which each sends 2 (N − 1) / N · 4P bytes.
    Codes cannot be summed on their way: each worker's W words go to all others, which is
    (N − 1) · 4W bytes. So codes are fewer bytes below N = 2P / W workers, which for codes of b bits
    is a little below 64 / b. The protocol's own bytes, and those of metrics, come on top of both.

    Attributes:
        parameters: P, trained numbers of the model.
        num_bits: b, of a code.
        message_bytes: 4W, of the codes of one worker, packed, with their scales.
        workers: N, replicas that exchange gradients.
        sends_codes: Whether the model was made under a strategy that sends codes.
    """

    parameters: int
    num_bits: int
    message_bytes: int
    workers: int
    sends_codes: bool

    @property
    def float_bytes(self) -> float:
        """Bytes that each worker sends in a step, as floats."""
        return 2 * (self.workers - 1) / self.workers * _BYTES * self.parameters

    @property
    def code_bytes(self) -> float:
        """Bytes that each worker sends in a step, as codes."""
        return float((self.workers - 1) * self.message_bytes)

    @property
    def ratio(self) -> float:
        """How many times fewer bytes codes are; below 1: more."""
        return self.float_bytes / self.code_bytes if self.code_bytes else 1.0

    @property
    def loses_from(self) -> int:
        """The number of workers from which on codes are as many bytes as floats, or more."""
        return max(2, math.ceil(2 * _BYTES * self.parameters / self.message_bytes))

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        names = ("float_bytes", "code_bytes", "ratio", "loses_from")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        lines = [
            f"{self.parameters:,} gradients, {self.num_bits} bits, {self.workers} workers",
            f"a worker sends {self.float_bytes:,.0f} bytes a step as floats, "
            f"{self.code_bytes:,.0f} as codes: {self.ratio:.2f} times fewer",
            f"codes are no fewer bytes from {self.loses_from} workers on",
        ]
        if not self.sends_codes:
            lines.append(
                "this model sends no codes: it was not made under a MultiWorkerMirroredStrategy of "
                "two workers or more"
            )
        return "\n".join(lines)


def gradient_traffic(model: keras.Model, workers: int | None = None) -> GradientTraffic:
    """Counts the bytes that gradients of a model take between workers, as floats and as codes.

    Args:
        model: A built model, compiled with `QuantizedGradients`.
        workers: For how many; by default for the replicas of the strategy that the model was made
            under, or 2 where it has one.

    Raises:
        TypeError: The model was compiled with another optimizer, or not at all.
        ValueError: It is not built, or `workers` is below 2.

    Example:
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(10)])
        >>> model.compile(tfc.QuantizedGradients(keras.optimizers.SGD(), num_bits=4), "mse")
        >>> print(tfc.distribute.gradient_traffic(model, workers=2))
        1,010 gradients, 4 bits, 2 workers
        a worker sends 4,040 bytes a step as floats, 516 as codes: 7.83 times fewer
        codes are no fewer bytes from 16 workers on
        this model sends no codes: it was not made under a MultiWorkerMirroredStrategy of two workers or more
    """  # noqa: E501
    optimizer = _quantized(getattr(model, "optimizer", None))
    if not model.built:
        raise ValueError(
            f"Expected a built model. Received: {model.name!r}. Give it an input shape."
        )
    strategy = model.distribute_strategy
    if workers is None:
        workers = max(2, strategy.num_replicas_in_sync)
    if workers < 2:
        raise ValueError(f"Expected `workers` from 2 on. Received: {workers}.")
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    scales = sum(optimizer.num_scales(shape) for shape in shapes)
    return GradientTraffic(
        parameters=sum(math.prod(shape) for shape in shapes),
        num_bits=optimizer.num_bits,
        message_bytes=_BYTES * message_words(shapes, scales, optimizer.num_bits),
        workers=workers,
        sends_codes=several_workers(strategy),
    )


def _quantized(optimizer: Any) -> QuantizedGradients:
    found = optimizer
    while found is not None and not isinstance(found, QuantizedGradients):
        found = getattr(found, "inner_optimizer", None)
    if found is None:
        raise TypeError(
            "Expected a model that was compiled with tfc.QuantizedGradients. Received: "
            f"{type(optimizer).__name__}."
        )
    return found
