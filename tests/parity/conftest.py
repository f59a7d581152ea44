"""One converter for all parity tests, and real images to run."""

import keras
import numpy as np
import pytest

import tfcompress as tfc


@pytest.fixture(scope="session")
def images(digits):
    """240 real images of 8×8 pixels, one channel, in 0..1."""
    return digits[0][0][:240]


@pytest.fixture
def check_parity(tmp_path, images):
    """Quantizes, saves, loads anew, exports and returns `({output: parity}, report)`."""

    def check(model, config="int8", data=None, **kwargs):
        data = images if data is None else data
        randomize(model)
        # Two batches. What the other images have beyond the ranges saturates, in the file as well.
        quantized = tfc.quantize(model, config, calibration_data=data[:64])
        assert not quantized.plan.float_layers
        quantized.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=data, **kwargs)
        return {p.output: p for p in report.parity["serving_default"]}, report

    return check


def randomize(model, seed=0):
    """Random biases and batch-norm parameters and statistics: zeros and ones would hide errors."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model):
            continue
        for variable in layer.weights:
            shape = variable.shape
            if variable.name in ("bias", "beta", "moving_mean"):
                variable.assign(random.normal(0, 0.2, shape))
            elif variable.name in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, shape))
            elif variable.name in ("kernel", "depthwise_kernel"):
                variable.assign(variable * 2.0)
            elif variable.name == "alpha":
                variable.assign(random.uniform(0.05, 0.4, shape))
