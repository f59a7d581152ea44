"""The ranges of tfmot's quantizers, and which of them a full-int8 file can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Range of a quantizer of tfmot before it has seen a batch.
START = (-6.0, 6.0)


@dataclasses.dataclass(frozen=True)
class Range:
    """The range to which tfmot rounds a tensor: 255 steps from low to high.

    Attributes:
        low: Real value of the smallest code, before the zero point is rounded.
        high: Of the largest.
    """

    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether it has seen a batch, and holds more than zeros."""
        return (self.low, self.high) != START and self.low <= 0 <= self.high > self.low

    def parameters(self) -> tuple[np.float32, np.float32]:
        """`(scale, zero_point)` of int8 codes, as TensorFlow's fake quantization computes them."""
        low, high = np.float32(self.low), np.float32(self.high)
        scale = (high - low) / np.float32(255)
        # Half away from zero, as C++ rounds; it is never negative here.
        zero_point = np.clip(np.floor(-low / scale + np.float32(0.5)), 0, 255)
        return scale, np.float32(zero_point - 128)


def activation_range(
    found: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], name: str
) -> Range | None:
    """The range of a quantizer of activations; `None` where there is none.

    Raises:
        ValueError: One whose codes no full-int8 file holds.
    """
    if found is None:
        return None
    options = {key: found[key] for key in ("num_bits", "narrow_range")}
    is_usual = options == {"num_bits": 8, "narrow_range": False} and found["low"] is not None
    if not is_usual or found.get("per_axis") or found.get("symmetric"):
        _refuse(found, name, "activations of 8 bits, affine, with one range per tensor")
    low, high = (float(arrays[found[key]]) for key in ("low", "high"))
    return Range(low, high)


def kernel_limit(
    kernel: Mapping[str, Any], class_name: str, arrays: Mapping[str, np.ndarray], name: str
) -> tuple[np.ndarray, str, np.ndarray | None]:
    """`(limits, group, mask)` of a kernel's quantizer: its largest values, and of which weights.

    Raises:
        ValueError: One whose codes no full-int8 file holds.
    """
    found = kernel["range"]
    is_usual = (
        found is not None
        and "LastValueQuantizer" in found["bases"]
        and "ClusterPreserve" not in found["type"]
        and (found["num_bits"], found["symmetric"], found["narrow_range"]) == (8, True, True)
        and found["low"] is not None
    )
    if not is_usual or kernel["name"] not in ("kernel", "depthwise_kernel"):
        _refuse(
            found,
            f"{name}/{kernel['name']}",
            "kernels of 8 bits, symmetric and of narrow range, by LastValueQuantizer",
        )
    limit = np.asarray(arrays[found["high"]], np.float32)
    group = "tensor"
    if found["per_axis"]:
        group = "last axis" if class_name == "DepthwiseConv2D" else "channel"
    mask = None if "mask" not in found else arrays[found["mask"]]
    return limit, group, mask


def _refuse(found: Mapping[str, Any] | None, name: str, expected: str) -> None:
    given = None
    if found is not None:
        keys = ("type", "num_bits", "per_axis", "symmetric", "narrow_range")
        given = ", ".join(f"{key}={found[key]!r}" for key in keys)
    raise ValueError(
        f"Expected {expected}, as tfmot's default 8-bit scheme has them. Received: {name!r} with "
        f"{given}. Quantize the float model anew with tfcompress.quantize."
    )
