"""Schemes: what may be asked for, and configurations of them."""

import dataclasses
import re

import pytest

import tfcompress as tfc
from tfcompress.quantization.observers import LeastSquares, MinMax, Percentile
from tfcompress.quantization.schemes import (
    PRESETS,
    ActivationScheme,
    Scheme,
    WeightScheme,
    resolve,
    scheme_config,
    scheme_from_config,
)


def test_presets():
    weights, activations = PRESETS["int8"].weights, PRESETS["int8"].activations
    assert (weights.num_bits, weights.symmetric, weights.per_channel) == (8, True, True)
    assert weights.narrow_range
    assert (activations.num_bits, activations.symmetric, activations.narrow_range) == (8, 0, 0)
    assert PRESETS["w4a8"].weights.num_bits == 4
    assert PRESETS["w4a4"].activations.num_bits == 4


@pytest.mark.parametrize("cls", [WeightScheme, ActivationScheme])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"num_bits": 1}, ValueError, "`num_bits` from 2 to 8.* Received: 1"),
        ({"num_bits": 9}, ValueError, "`num_bits`"),
        ({"num_bits": 8.0}, ValueError, "`num_bits`"),
        ({"rounding": "up"}, ValueError, "`rounding` in .*nearest.* Received: 'up'"),
        ({"observer": "minmax"}, TypeError, "`observer` to be an Observer. Received: 'minmax'"),
        ({"quantizer": "ternary"}, TypeError, "`quantizer` to be an? .*. Received: 'ternary'"),
    ],
)
def test_wrong_fields(cls, fields, error, message):
    with pytest.raises(error, match=message):
        cls(**fields)


def test_a_scheme_is_of_two_schemes():
    with pytest.raises(TypeError, match=r"`weights` to be a WeightScheme\. Received: Act"):
        Scheme(weights=ActivationScheme())
    with pytest.raises(TypeError, match="`activations` to be a ActivationScheme"):
        Scheme(activations="int8")


def test_resolve():
    assert resolve(None) is None
    assert resolve("w4a8") is PRESETS["w4a8"]
    assert resolve(PRESETS["int8"]) is PRESETS["int8"]
    with pytest.raises(ValueError, match=r"one of \['binary', .*'int8', .*Received: 'int9'"):
        resolve("int9")
    with pytest.raises(TypeError, match="Received: 8"):
        resolve(8)


@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme(3, False, False, False, "truncate", True, Percentile(99.0)),
        ActivationScheme(5, True, True, "stochastic", True, LeastSquares(9)),
        ActivationScheme(observer=MinMax()),
    ],
)
def test_config(scheme):
    config = scheme_config(scheme)
    assert set(config) == {f.name for f in dataclasses.fields(scheme)}
    assert scheme_from_config(type(scheme), config) == scheme
    assert scheme_from_config(type(scheme), scheme) is scheme


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("float16", 'weights="float16"'),
        ("fp16", 'weights="float16"'),
        ("dynamic", 'weights="dynamic"'),
        ("int16", '"int16x8"'),
        ("float32", "allow_float=True"),
        ("W4A8", "'w4a8'"),
        ("int_8", "'int8'"),
        ("w5a7", "WeightScheme"),
    ],
)
def test_a_name_that_is_no_preset_says_what_to_do(name, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        tfc.QuantizationConfig(name)
