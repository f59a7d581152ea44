"""Large kernels reach the converter as variables of the SavedModel: the file is the same."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.export.lowering import calls, lower


def test_variables_and_constants_give_one_file(tmp_path, converter, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, name="a")(inputs)))
    x = layers.Conv2DTranspose(3, 2, name="b")(layers.DepthwiseConv2D(2, name="c")(x))
    model = keras.Model(inputs, layers.Dense(3, name="d")(layers.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype("float32")
    quantized = tfc.quantize(model, calibration_data=data)
    used = []
    release = lower.Lowered.release
    monkeypatch.setattr(
        lower.Lowered, "release", lambda self: (used.append(len(self.variables)), release(self))
    )
    files = []
    for number, size in enumerate((2**22, 0)):
        monkeypatch.setattr(calls, "_LARGE", size)
        path = tmp_path / f"{number}.tflite"
        assert tfc.export_tflite(quantized, path).agreement == 1.0
        files.append(path.read_bytes())
    assert used[0] == 0
    assert used[1] >= 2
    assert files[0] == files[1]
