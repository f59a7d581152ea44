"""A file that differs from its plan is refused, by the name of the layer."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.plan_check import check_plan
from tfcompress.export.flatbuffer.planned import (
    MARK_ZERO_POINT,
    Kind,
    PlannedTensor,
    mark_number,
    mark_range,
)
from tfcompress.export.flatbuffer.quantize import PlanError, quantize_file
from tfcompress.export.lowering.lower import lower


@pytest.fixture(scope="module")
def converted(converter):
    """`(the file as the converter wrote it, its plan)`, with one layer in float."""
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", bias_initializer="normal", name="conv")(image)
    x = layers.Conv2D(5, 3, name="mid")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dense(3, bias_initializer="normal", name="dense")(layers.Flatten()(x))
    data = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
    config = tfc.QuantizationConfig(by_name={"mid": None})
    model = tfc.quantize(keras.Model(image, x), config, calibration_data=data)
    lowered = lower(model, ["dense"])
    return converter.convert({"serving_default": lowered}), lowered.planned


@pytest.fixture(scope="module")
def quantized(converted):
    data, planned = converted
    return quantize_file(data, {"serving_default": planned}), planned


def altered(planned, layer, change):
    """The plan with `change(tensor)` in place of a layer's tensor of codes; `None` drops it."""
    found = []
    for tensor in planned:
        is_it = tensor.layer == layer and tensor.kind is not Kind.FLOAT
        tensor = change(tensor) if is_it else tensor
        found += [] if tensor is None else [tensor]
    return found


def with_kernel(**changes):
    def change(tensor):
        changed = {name: f(getattr(tensor.kernel, name)) for name, f in changes.items()}
        return dataclasses.replace(tensor, kernel=dataclasses.replace(tensor.kernel, **changed))

    return change


def test_the_plan_of_the_file_is_met(quantized):
    data, planned = quantized
    found = check_plan(data, {"serving_default": planned})
    assert sorted(found) == [("conv", "int8"), ("dense", "int8")]
    kinds = {tensor.layer: tensor.kind for tensor in planned if tensor.scale}
    computed, rounded = Kind.COMPUTED, Kind.ROUNDED
    assert kinds == {"image": rounded, "conv": computed, "mid": rounded, "dense": computed}


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("conv", lambda t: None, r"CONV_2D of 'conv/\w+' runs in int8, planned float"),
        ("mid", lambda t: None, r"'mid/\w+' is quantized, which is not planned"),
        ("image", lambda t: None, "the input 'image' is int8, planned float"),
        ("dense", lambda t: dataclasses.replace(t, scale=2 * t.scale), r"of 'dense' has \("),
        ("image", lambda t: dataclasses.replace(t, zero_point=99), r"of 'image' has \("),
        ("conv", with_kernel(codes=lambda c: -c), "kernel of 'conv' has other codes"),
        ("dense", with_kernel(scale=lambda s: 2 * s), "kernel of 'dense' has other scales"),
        ("dense", with_kernel(bias=lambda b: b + 0.1), "bias of 'dense' is another"),
        (
            "dense",
            lambda t: dataclasses.replace(t, name="dense/other", layer="other"),
            "tensor of 'other' is planned int8 and not in the file",
        ),
        (
            "mid",
            lambda t: dataclasses.replace(t, kind=Kind.COMPUTED),
            r"'mid/\w+' is computed in float, planned int8",
        ),
    ],
)
def test_a_difference_names_the_layer(quantized, layer, change, message):
    data, planned = quantized
    with pytest.raises(ValueError, match=message):
        check_plan(data, {"serving_default": altered(planned, layer, change)})


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("conv", with_kernel(codes=lambda c: -c), "'conv': Expected the trained kernel"),
        ("conv", with_kernel(bias=lambda b: b + 0.5), "'conv': Expected the bias"),
        ("dense", with_kernel(input_scale=lambda s: 2 * s), "'dense': Expected an input of sc"),
    ],
)
def test_a_kernel_that_the_converter_changed_is_refused(converted, layer, change, message):
    data, planned = converted
    with pytest.raises(PlanError, match=message):
        quantize_file(data, {"serving_default": altered(planned, layer, change)})


def test_a_planned_tensor_that_is_not_in_the_graph_is_refused(converted):
    data, planned = converted
    missing = PlannedTensor("lost/q", "lost", Kind.COMPUTED, 1.0)
    with pytest.raises(PlanError, match="none for 'lost'"):
        quantize_file(data, {"serving_default": [*planned, missing]})
    with pytest.raises(PlanError, match="a plan of all marked tensors"):
        quantize_file(data, {"serving_default": planned[:-1]})


def test_marks_are_exact_numbers():
    for number in (1, 2, 255, 1000, 65536):
        low, high = (np.float32(end) for end in mark_range(number))
        assert mark_number(float((high - low) / 255), MARK_ZERO_POINT) == number
    assert mark_number(1.5, MARK_ZERO_POINT) is None
    assert mark_number(2.0, 0) is None
    with pytest.raises(ValueError, match="number in 1"):
        mark_range(0)


def test_a_kernel_that_stays_in_float_is_not_among_those_that_are_found(converted):
    data, planned = converted
    other = altered(planned, "dense", with_kernel(codes=np.negative))
    file = quantize_file(data, {"serving_default": other}, allow_float=True)
    assert check_plan(file, {"serving_default": other}, allow_float=True) == [("conv", "int8")]
