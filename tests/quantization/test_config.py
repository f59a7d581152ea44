"""Which layer gets which scheme, and what a wrong key says."""

import keras
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.config import as_config

W4 = tfc.Scheme(tfc.WeightScheme(num_bits=4))


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, name="conv1")(inputs)
    body = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(2, 3, name="conv2"), layers.Flatten(name="flat")],
        name="body",
    )
    return keras.Model(inputs, layers.Dense(2, name="head")(body(x)))


def weights(plan):
    return {entry.name: entry.weights for entry in plan if entry.weights}


def test_exact_name_then_regex_then_type_then_default(model):
    config = tfc.QuantizationConfig(
        default="int8",
        by_type={layers.Conv2D: W4, "Dense": None},
        by_name={"conv.*": tfc.Scheme(tfc.WeightScheme(num_bits=5)), "conv1": "w4a8"},
    )
    plan = tfc.plan(model, config)
    assert weights(plan) == {"conv1": "int4 per channel", "body/conv2": "int5 per channel"}
    assert plan.float_layers == {"head": "the configuration says so"}
    by_type = tfc.plan(model, tfc.QuantizationConfig(None, by_type={"Conv2D": "w4a8"}))
    assert set(weights(by_type)) == {"conv1", "body/conv2"}


@pytest.mark.parametrize("key", ["conv2", "body/conv2", "body/.*", r".*2"])
def test_layers_of_nested_models_by_name_path_or_regex(key, model):
    plan = tfc.plan(model, tfc.QuantizationConfig(by_name={key: "w4a8"}))
    assert weights(plan)["body/conv2"] == "int4 per channel"
    assert weights(plan)["conv1"] == "int8 per channel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by_name": {"conv11": None}}, r"`by_name` .*'conv11'. Did you mean 'conv1'"),
        ({"by_name": {"xyz": None}}, r"'xyz'. There are: \["),
        ({"by_name": {"conv(": None}}, r"layer name or a regular expression. Received: 'conv\('"),
        ({"by_type": {"Conv2d": None}}, r"`by_type` .*'Conv2d'. Did you mean 'Conv2D'"),
        ({"by_type": {layers.LSTM: None}}, r"`by_type` .*LSTM'>"),
        # A regular expression must match a whole name.
        ({"by_name": {"con": None}}, "'con'"),
    ],
)
def test_keys_that_match_nothing(options, message, model):
    config = tfc.QuantizationConfig(**options)
    for function in (tfc.plan, tfc.quantize):
        with pytest.raises(ValueError, match=message):
            function(model, config)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"default": "int7"}, ValueError, "Received: 'int7'"),
        ({"by_name": {"a": "int7"}}, ValueError, "Received: 'int7'"),
        ({"by_type": ["Dense"]}, TypeError, r"`by_type` to be a dict. Received: \['Dense'\]"),
        ({"default": 8}, TypeError, "Received: 8"),
    ],
)
def test_wrong_schemes_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        tfc.QuantizationConfig(**options)


def test_a_scheme_alone_is_the_default():
    assert as_config(W4) == tfc.QuantizationConfig(W4)
    config = tfc.QuantizationConfig("w4a8")
    assert as_config(config) is config
