"""The page of `keras.applications`: it says what was measured, and the targets are met."""

import keras

from benchmarks import coverage
from recipes.results import Results


def rows():
    return Results(coverage.TABLE, ("model",)).rows


def test_the_page_is_that_of_the_table():
    # Written by python -m benchmarks.coverage --print
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.page(rows())


def test_what_was_measured_is_in_int8_and_agrees():
    missed = [
        row["model"]
        for row in coverage.latest(rows())
        if row["float_tensors"] != "0" or float(row["equal"]) < 99 or float(row["largest"]) > 2
    ]
    assert not missed


def test_all_networks_are_found_by_family():
    found = coverage.applications()
    assert {"ConvNeXtXLarge", "MobileNetV3Small", "NASNetLarge", "ResNet152V2"} <= set(found)
    assert found["ResNet101"] == found["ResNet50"] == "resnet"
    assert len(set(found.values())) >= 15


def test_a_network_that_refuses_32_pixels_gets_the_size_that_it_names(monkeypatch):
    def network(input_shape, **options):
        if input_shape[0] < 71:
            raise ValueError(f"Input size must be at least 71x71; Received: {input_shape}")
        return input_shape

    monkeypatch.setattr(keras.applications, "Network", network, raising=False)
    assert coverage.smallest("Network") == (71, 71, 3)


def test_a_row_measured_again_takes_the_place_of_the_first():
    row = dict.fromkeys(coverage.COLUMNS, "1") | {"model": "Net", "outside": ""}
    text = coverage.page([row | {"commit": "old"}, row | {"commit": "new"}])
    assert "Networks: 1; families: 1." in text
    assert "| new |" in text
    assert "| old |" not in text
