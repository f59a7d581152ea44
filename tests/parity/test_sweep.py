"""Calls of every kind run as the plan says, and the file computes what the model computes."""

import keras
import pytest

import tfcompress as tfc
from tests.parity import cases
from tests.parity.conftest import randomize


def model_of(chosen):
    """A model with an output for each case, and the names of its inputs."""
    names = list(dict.fromkeys(case.given for case in chosen.values()))
    inputs = {name: cases.symbolic(name) for name in names}
    outputs = {name: case.make(inputs[case.given]) for name, case in chosen.items()}
    return keras.Model(inputs, outputs), names


@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_case_is_what_the_sweep_says(kind, tmp_path):
    listed = cases.KINDS[kind]
    for name, case in listed.items():
        if case.outcome != cases.INT8:
            model, _ = model_of({name: case})
            assert tfc.plan(model).refused_floats, name
    chosen = {name: case for name, case in listed.items() if case.outcome == cases.INT8}
    model, names = model_of(chosen)
    randomize(model)
    data = {name: cases.samples(name, 96) for name in names}
    quantized = tfc.quantize(model, calibration_data=data)
    assert not quantized.plan.float_layers
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=data)
    assert not report.float_tensors
    parities = {p.output: p for p in report.parity["serving_default"]}
    assert set(parities) == set(chosen)
    wrong = {n: p for n, p in parities.items() if p.equal < 0.99 or p.largest > 1}
    assert not wrong
    few = {n: p for n, p in parities.items() if p.distinct < chosen[n].distinct}
    assert not few
