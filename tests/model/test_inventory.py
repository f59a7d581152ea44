"""The layer inventory."""

import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.model.inventory import inventory


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 1))
    x = L.BatchNormalization(name="norm")(L.Conv2D(2, 3, name="conv")(inputs))
    x = L.Bidirectional(L.LSTM(3), name="both")(L.Reshape((6, 12))(x))
    model = keras.Model(inputs, L.Dense(4, name="dense")(x))
    kernel = np.zeros((6, 4), np.float32)
    kernel[0] = [1, 2, 2, -1]
    model.get_layer("dense").kernel.assign(kernel)
    return model


def test_rows(model):
    table = inventory(model)
    dense = table["dense"]
    assert (dense.parameters, dense.kernel, dense.nonzeros, dense.distinct) == (28, 24, 4, 4)
    assert dense.sparsity == pytest.approx(20 / 24)
    assert dense.macs == 24
    assert dense.bytes == 28 * 4
    assert table["conv"].macs == 36 * 9 * 2
    assert (table["norm"].parameters, table["norm"].kernel, table["norm"].macs) == (8, 0, 0)


def test_every_parameter_is_counted_once(model):
    table = inventory(model)
    assert table.total.parameters == model.count_params()
    assert {row.kind for row in table.rows} == {"Conv2D", "BatchNormalization", "LSTM", "Dense"}
    lstm = next(row for row in table.rows if row.kind == "LSTM")
    assert lstm.kernel == 12 * 12 + 3 * 12
    assert lstm.macs == 6 * lstm.kernel


def test_bits_come_from_the_caller(model):
    table = inventory(model, bits={"dense": 4})
    assert table["dense"].bytes == 24 * 4 // 8 + 4 * 4
    assert table["conv"].bits == 32
    eight = inventory(model, bits=lambda layer: 8)
    assert eight.total.bits == 8
    kernels = eight.total.kernel
    assert eight.total.bytes == kernels + 4 * (model.count_params() - kernels)


def test_printed(model):
    text = str(inventory(model))
    for word in ("dense", "83.3 %", "Conv2D", "MACs", "total"):
        assert word in text


def test_plot(model, tmp_path):
    inventory(model).plot(tmp_path / "inventory.png")
    assert (tmp_path / "inventory.png").stat().st_size > 1000


def test_a_model_with_unknown_inputs_has_no_macs():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3, name="only")

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    example = np.zeros((2, 4), np.float32)
    model(example)
    assert inventory(model)["only"].macs is None
    assert inventory(model).total.macs is None
    assert inventory(model, inputs=example)["only"].macs == 12


def test_shared_kernels_are_counted_once():
    shared = L.Dense(4, name="shared")
    inputs = keras.Input((4,))
    table = inventory(keras.Model(inputs, shared(shared(inputs))))
    assert len(table.rows) == 1
    assert table["shared"].parameters == 20
    assert table["shared"].macs == 32


def test_a_compressed_layer_shows_what_its_forward_pass_reads(model):
    from tfcompress.model.compressed import compress
    from tfcompress.model.transforms import KeepMask

    masked = compress(model.get_layer("dense"), {"kernel": [KeepMask()]})
    masked.build((None, 6))
    masked.kernel.assign(np.arange(1, 25, dtype=np.float32).reshape(6, 4))
    mask = masked.transforms["kernel"][0].mask
    mask.assign(np.eye(6, 4, dtype=np.float32))
    table = inventory(keras.Sequential([keras.Input((6,)), masked]))
    assert len(table.rows) == 1
    assert (table["dense"].parameters, table["dense"].nonzeros) == (28, 4)
    assert table["dense"].distinct == 5
