"""What the plan says of LiteRT is what LiteRT's runtime does."""

import numpy as np
import pytest

from tests.one_op import one_op, run
from tfcompress.quantization.calibration.limits import LARGEST_RATIO, SMALLEST_RATIO

_IMAGE, _VOLUME = (1, 4, 4, 2), (1, 4, 4, 4, 2)
_STRIDES = {f"stride{axis}": 1 for axis in "DHW"} | {f"dilation{axis}Factor": 1 for axis in "DHW"}
# Operators of more than one tensor of the image's shape: the others, and which are constants.
_OTHERS = {
    "ATAN2": ([_IMAGE], ()),
    "CONV_3D": ([(2, 2, 2, 2, 2)], (1,)),
    "CONV_3D_TRANSPOSE": ([(2, 2, 2, 2, 2), _VOLUME], (0, 1)),
    "POW": ([_IMAGE], ()),
}
_OPTIONS = {
    "CONV_3D": ("Conv3D", _STRIDES),
    "CONV_3D_TRANSPOSE": ("Conv3D", _STRIDES),
    "COS": ("Cos", {}),
    "POW": ("Pow", {}),
    "SIGN": ("Sign", {}),
    "SQUARE": ("Square", {}),
}


def runs(name, dtype, version):
    """Whether the runtime computes an operator on tensors of a type."""
    others, constants = _OTHERS.get(name, ([], ()))
    shape = _VOLUME if name.startswith("CONV_3D") else _IMAGE
    first = np.array(_VOLUME, np.int32) if name == "CONV_3D_TRANSPOSE" else np.ones(shape, dtype)
    rest = [x if isinstance(x, np.ndarray) else np.ones(x, dtype) for x in others]
    inputs = [first, *rest]
    data = one_op(
        name,
        inputs,
        (shape, dtype),
        constants=constants,
        options=_OPTIONS.get(name),
        version=version,
    )
    try:
        run(data, [x for i, x in enumerate(inputs) if i not in constants])
    except (RuntimeError, ValueError):
        return False
    return True


def test_litert_has_the_angle_of_two_tensors_in_float_only():
    versions = range(1, 7)
    assert any(runs("ATAN2", np.float32, version) for version in versions)
    assert not any(runs("ATAN2", np.int8, version) for version in versions)


@pytest.mark.parametrize("name", ["SQRT", "ABS", "RSQRT"])
def test_operators_of_which_it_is_not_said_run_in_int8(name):
    assert any(runs(name, np.int8, version) for version in (1, 2))


@pytest.mark.parametrize("kind", SMALLEST_RATIO)
def test_the_ratios_of_scales_are_those_that_xnnpack_takes(kind):
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, -1)
    name, option = {
        "Add": ("ADD", "Add"),
        "Subtract": ("SUB", "Sub"),
        "Multiply": ("MUL", "Mul"),
    }[kind]
    smallest = SMALLEST_RATIO[kind]
    for ratio, expected in (
        (0.99 * smallest, False),
        (smallest, True),
        (0.99 * LARGEST_RATIO, True),
        (LARGEST_RATIO, False),
    ):
        data = one_op(
            name,
            [codes, codes],
            (codes.shape, np.int8),
            options=(option, {}),
            version=2,
            scales=[ratio, 1.0, 1.0],
        )
        output, is_delegated = run(data, [codes, codes])
        assert is_delegated == expected
        if ratio < 1:
            # A tiny operand changes nothing, and LiteRT's own operators compute that exactly.
            x = codes.astype(np.float64)
            exact = {"Add": ratio * x + x, "Subtract": ratio * x - x, "Multiply": ratio * x * x}
            np.testing.assert_array_equal(output, np.clip(np.rint(exact[kind]), -128, 127))
