"""Widths that save weights, and widths that save multiply-accumulates."""

import keras
import pytest
from keras import layers

from tfcompress.analysis.options.widths import Widths
from tfcompress.analysis.search.losses import Losses
from tfcompress.analysis.search.structures import BySize, Structures
from tfcompress.analysis.sensitivity.table import Row
from tfcompress.model.macs import count_macs

SHARES = (0.75, 0.5)


@pytest.fixture(scope="module")
def model():
    """`early` has most of the products, `late` most of the weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="early")(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="middle")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(256, activation="relu", name="late")(x)
    return keras.Model(inputs, layers.Dense(32, name="scores")(x))


@pytest.fixture(scope="module")
def widths(model):
    return Widths(model)


@pytest.fixture(scope="module")
def losses(widths):
    """Every group loses alike."""
    rows = [
        Row(name, f"channels={share}", 1 - share, None, 1)
        for name in widths.names
        for share in SHARES
    ]
    return Losses(rows)


@pytest.mark.parametrize(
    ("measure", "cut"), [("macs", {"early", "middle"}), ("parameters", {"late"})]
)
def test_what_is_limited_decides_what_goes(model, widths, losses, measure, cut):
    found = Structures(model, widths, losses, [measure]).at(0.7)
    assert set(found.channels) <= cut
    small = found.structured(model, widths).model
    count = count_macs if measure == "macs" else keras.Model.count_params
    assert count(small) <= 0.7 * count(model)


def test_both_at_once(model, widths, losses):
    found = Structures(model, widths, losses, ["macs", "parameters"]).at(0.75)
    small = found.structured(model, widths).model
    assert count_macs(small) <= 0.75 * count_macs(model)
    assert small.count_params() <= 0.75 * model.count_params()
    assert Structures(model, widths, losses, ["macs"]).at(0.05) is None


@pytest.mark.parametrize("measure", ["macs", "parameters"])
def test_by_size(model, widths, measure):
    found = BySize(widths, measure).at(0.6)
    small = found.structured(model, widths).model
    count = count_macs if measure == "macs" else keras.Model.count_params
    assert 0.5 * count(model) < count(small) <= 0.6 * count(model)


def test_a_width_between_two_that_were_measured(losses, widths):
    name = widths.names[0]
    assert losses.of_channels(name, 1.0) == 0
    assert losses.of_channels(name, 0.875) == pytest.approx(0.125)
    assert losses.of_channels(name, 0.625) == pytest.approx(0.375)
    assert losses.of_channels(name, 0.25) == pytest.approx(0.5)


def test_shares_by_size_are_those_that_stay(model, widths):
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        found = BySize(widths, "parameters").at(share)
        small = widths.build(found.channels)
        for name, group in zip(widths.names, widths.groups, strict=True):
            kept = small.get_layer(name).get_weights()[0].shape[-1]
            assert kept / len(group) == pytest.approx(found.channels.get(name, 1.0), abs=1e-6)
