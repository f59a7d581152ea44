"""What calibration warns of, and that it keeps silent where all is well."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.calibration.diagnosis import outside_problems, sample_problems


def dense_model(features, **options):
    return keras.Sequential([keras.Input((features,)), layers.Dense(3, name="head", **options)])


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)


def test_an_ordinary_model_is_calibrated_in_silence(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.quantize(dense_model(4), "int8", calibration_data=table)


def test_an_input_far_from_zero_uses_few_codes(table):
    data = 1000 + table
    with pytest.warns(UserWarning, match="uses only . of 256 codes"):
        tfc.quantize(dense_model(4), "int8", calibration_data=data)


def test_an_output_far_from_zero_uses_few_codes(table):
    model = dense_model(4)
    model.get_layer("head").bias.assign([1e3, 1e3, 1e3])
    with pytest.warns(UserWarning, match="'head' uses only . of 256 codes"):
        tfc.quantize(model, "int8", calibration_data=table)


def test_values_that_have_few_levels_themselves_are_no_fault(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.quantize(dense_model(4), "int8", calibration_data=(table > 0).astype(np.float32))


def test_features_of_very_different_magnitude_are_named(table):
    data = table * np.float32([3000, 0.1, 2000, 0.1])
    with pytest.warns(UserWarning, match="Features 1, 3 of the input .* vary by less than one"):
        tfc.quantize(dense_model(4), "int8", calibration_data=data)


@pytest.mark.parametrize(("factor", "warned"), [(0.2, False), (0.001, True)])
def test_a_concatenation_of_uneven_ranges_is_named(table, factor, warned):
    model = uneven(factor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfc.quantize(model, "int8", calibration_data=table)
    assert any("'join' joins tensors" in str(w.message) for w in caught) is warned


def test_constant_data_and_dead_layers_are_named():
    data = np.ones((8, 4), np.float32)
    with pytest.warns(UserWarning, match="hold one value only"):
        tfc.quantize(dense_model(4), "int8", calibration_data=data)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "relu", name="dead"), layers.Dense(2)]
    )
    model.get_layer("dead").bias.assign([-100.0] * 3)
    data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="The outputs of dead, .* are zero"):
        tfc.quantize(model, "int8", calibration_data=data)


def test_exploding_ranges_are_named(table):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="huge"), layers.Dense(2)])
    huge = model.get_layer("huge")
    huge.kernel.assign(huge.kernel * 1e5)
    with pytest.warns(UserWarning, match=r"The ranges of huge \("):
        tfc.quantize(model, "int8", calibration_data=table)


def test_samples_outside_the_calibrated_range(table):
    quantized = tfc.quantize(dense_model(4), "int8", calibration_data=table)
    assert outside_problems(quantized, [table]) == []
    (problem,) = outside_problems(quantized, [table * 4])
    assert "lie outside the range" in problem


def test_outputs_too_small_for_any_scale_are_named(table):
    model = dense_model(4)
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * 3e-7)
    with pytest.warns(UserWarning, match="'head' are smaller than .* and become zeros"):
        tfc.quantize(model, "int8", calibration_data=0.1 * table)


def uneven(factor):
    inputs = keras.Input((4,))
    small = layers.Dense(4, kernel_initializer=keras.initializers.Constant(factor))(inputs)
    large = layers.Dense(4, kernel_initializer="ones")(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate(name="join")([small, large])))


@pytest.mark.filterwarnings("ignore:'join' joins", "ignore:Features", "ignore:.* uses only")
def test_real_samples_show_the_same_at_an_export(table):
    """Ranges may have moved in training, and a loaded model has no calibration data."""
    wide = table * np.float32([3000, 0.1, 2000, 0.1])
    quantized = tfc.quantize(dense_model(4), calibration_data=wide)
    (problem,) = sample_problems(quantized, [wide])
    assert problem.startswith("Features 1, 3 of the input")
    far = tfc.quantize(dense_model(4), calibration_data=1000 + table)
    assert "uses only" in sample_problems(far, [1000 + table])[0]
    (problem,) = sample_problems(tfc.quantize(uneven(0.001), calibration_data=table), [table])
    assert "'join' joins tensors whose ranges differ by a factor of 1000" in problem
    assert sample_problems(tfc.quantize(uneven(0.2), calibration_data=table), [table]) == []
