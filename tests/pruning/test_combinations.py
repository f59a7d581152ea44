"""Pruning together with quantization, distillation and several replicas."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.model.compressed import is_compressed
from tfcompress.pruning import (
    SET,
    ConstantSparsity,
    DynamicNetworkSurgery,
    PolynomialDecay,
    Pruner,
)
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.regularization.callback import Regularization


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(name=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, name="convolution")(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    model = keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)), name=name)
    model.compile("adam", cross_entropy(), metrics=["accuracy"])
    return model


class Effective(keras.callbacks.Callback):
    """Looks after every step at what the forward pass reads: the kernels behind their rounding."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning = pruning
        self.leaks = []
        self.steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        for kernel, mask in zip(
            self.pruning.pruner.kernels, self.pruning.pruner.masks, strict=True
        ):
            value = np.asarray(kernel.layer.effective_weights()[kernel.spec.name])
            self.leaks.append(float(np.abs(value[~mask.numpy()]).max(initial=0)))


@pytest.mark.parametrize("method", ["gradual", "SET", "surgery"])
def test_quantization_aware_training_in_the_same_fit(blobs, method):
    model = tfc.quantize(network(), "int8", calibration_data=blobs[0][:32])
    model.compile("adam", cross_entropy())
    schedule = {
        "gradual": PolynomialDecay(0.5, 0.75, 0, 6, frequency=2),
        "SET": SET(0.75, 10, frequency=2),
        "surgery": DynamicNetworkSurgery(PolynomialDecay(0.5, 0.75, 0, 6), frequency=2),
    }[method]
    pruning = Pruning(schedule, verbose=0)
    effective = Effective(pruning)
    model.fit(*blobs, batch_size=16, epochs=2, verbose=0, callbacks=[pruning, effective])
    assert all(is_compressed(kernel.layer) for kernel in pruning.pruner.kernels)
    assert effective.steps == 12
    assert max(effective.leaks) == 0.0
    assert pruning.pruner.overall_sparsity() == pytest.approx(0.75, abs=0.02)


def test_prune_then_quantize_then_fit_keeps_every_zero(blobs):
    model = network()
    pruning = Pruning(ConstantSparsity(0.75), verbose=0)
    model.fit(*blobs, batch_size=16, verbose=0, callbacks=[pruning])
    quantized = tfc.quantize(model, "int8", calibration_data=blobs[0][:32])
    quantized.compile("adam", cross_entropy())
    quantized.fit(*blobs, batch_size=16, verbose=0)
    for name in ("convolution", "logits"):
        before = model.get_layer(name).kernel.numpy()
        effective = np.asarray(quantized.get_layer(name).effective_weights()["kernel"])
        assert not effective[before == 0].any()
        assert effective[before != 0].any()


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "entropy"])
def test_in_a_distiller_the_student_is_pruned_and_never_the_teacher(blobs, criterion):
    teacher, student = network("teacher"), network("student")
    before = [v.numpy() for v in teacher.weights]
    distiller = Distiller(teacher, student, [LogitsDistillation()])
    distiller.compile("adam", cross_entropy())
    pruning = Pruning(ConstantSparsity(0.75), criterion=criterion, data=blobs, verbose=0)
    regularization = Regularization(l1=1e-3, batch_norm_scale=1e-3)
    callbacks = [pruning, regularization]
    distiller.fit(*blobs, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    for old, variable in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert pruning.pruner.names == ["convolution", "logits"]
    for name in ("convolution", "logits"):
        kernel = student.get_layer(name).kernel
        assert (kernel.numpy() == 0).mean() == pytest.approx(0.75, abs=0.01)
        assert kernel.constraint is None
    scales = [p for p in regularization.pieces if p.target.variable.name == "gamma"]
    assert [p.target.variable is student.layers[2].gamma for p in scales] == [True]


def test_what_a_distiller_or_codebooks_leave_out_is_reported():
    class Odd(L.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 3))

        def call(self, x):
            return keras.ops.matmul(x, self.matrix)

    student = keras.Sequential([keras.Input((6, 6, 2)), L.Flatten(), L.Dense(8), Odd(name="odd")])
    loss = tfc.LogitsDistillation(student_from_logits=True)
    distiller = tfc.Distiller(network("teacher"), student, loss)
    pruner = Pruner(distiller, ConstantSparsity(0.5))
    assert [name for name in pruner.skipped if "odd" in name]
    clustered = tfc.cluster(network(), 4)
    assert Pruner(clustered, ConstantSparsity(0.5)).skipped == {}
