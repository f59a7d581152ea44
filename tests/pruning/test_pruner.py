"""What the pruner chooses, computes and says."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tests import fresh
from tfcompress.pruning import (
    Block,
    Channels,
    ConstantSparsity,
    NOfM,
    PolynomialDecay,
    Pruner,
    ScoringOptions,
    register_criterion,
)
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.criteria.functions import channel_entropy
from tfcompress.pruning.masks import constraints as masks
from tfcompress.pruning.structure import ChannelPruner


def names(model, **options):
    pruner = Pruner(model, ConstantSparsity(0.5), **options)
    pruner.detach()
    return pruner.names


def test_layers_are_chosen_by_name_expression_type_and_predicate(model):
    assert names(model) == ["conv", "depthwise", "dense", "logits"]
    assert names(model, layers="dense") == ["dense"]
    assert names(model, layers=["dense", "log.*"]) == ["dense", "logits"]
    assert names(model, layers=re.compile("e")) == ["depthwise", "dense"]
    assert names(model, layers=L.Dense) == ["dense", "logits"]
    assert names(model, layers=lambda layer: layer.name > "d") == ["depthwise", "dense", "logits"]
    assert names(model, skip_first_last=True) == ["depthwise", "dense"]


def test_what_is_left_out_is_reported(model, capsys, blobs):
    model.get_layer("dense").trainable = False
    callback = Pruning(ConstantSparsity(0.5), layers=["conv", "dense"])
    model.fit(*blobs, verbose=0, callbacks=[callback])
    report = callback.report()
    assert report.weights == {"conv": 144}
    assert "frozen" in report.skipped["dense"]
    assert "not chosen" in report.skipped["logits"]
    assert "not in the table" in report.skipped["odd/matrix"]
    printed = capsys.readouterr().out
    assert "odd/matrix" in printed
    assert "sparsity 50.0 % (conv 50.0 %)" in printed
    assert "odd/matrix" in str(report)
    assert report.overall == 0.5


def test_kernels_of_the_same_name_are_told_apart():
    def branch(name):
        inner = keras.Input((4,))
        return keras.Model(inner, L.LSTM(3, name="rnn")(L.Reshape((2, 2))(inner)), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Add()([branch("a")(inputs), branch("b")(inputs)]))
    assert names(model) == ["a/rnn", "a/rnn/recurrent_kernel", "b/rnn", "b/rnn/recurrent_kernel"]
    assert names(model, layers="b/.*") == ["b/rnn", "b/rnn/recurrent_kernel"]


@pytest.mark.parametrize("criterion", ["taylor", "snip", "fisher", "entropy", "mine"])
def test_scores_equal_numpy_on_a_real_model(model, blobs, criterion):
    register_criterion("mine", lambda kernel, gradient: kernel**2 + gradient)
    x, y = blobs[0][:40], blobs[1][:40]
    parts = [(x[:20], y[:20]), (x[20:], y[20:])]
    pruner = Pruner(
        model,
        ConstantSparsity(0.5),
        criterion=criterion,
        data=(x, y),
        scoring=ScoringOptions(num_batches=2, batch_size=20),
    )
    before = [v.numpy() for v in model.variables]
    scores = pruner.scores(0)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    kernel = model.get_layer("dense").kernel
    w = kernel.numpy()
    gradients = []
    for images, labels in parts:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=images, y=labels, y_pred=model(images, training=True))
        gradients.append(tape.gradient(loss, kernel.value).numpy())
        for old, variable in zip(before, model.variables, strict=True):
            variable.assign(old)
    per_batch = {
        "taylor": lambda g: np.abs(w * g),
        "snip": lambda g: np.abs(w * g),
        "fisher": lambda g: 0.5 * w**2 * g**2,
        "mine": lambda g: w**2 + g,
    }
    if criterion == "entropy":
        outputs = []
        for images, _ in parts:
            head = keras.Model(model.inputs[0], model.get_layer("dense").output)
            outputs.append(head(images, training=True).numpy())
            for old, variable in zip(before, model.variables, strict=True):
                variable.assign(old)
        expected = np.abs(w) * channel_entropy(np.concatenate(outputs))
    else:
        expected = np.mean([per_batch[criterion](g) for g in gradients], axis=0)
    np.testing.assert_allclose(scores[pruner.names.index("dense")], expected, rtol=1e-3, atol=1e-7)
    pruner.detach()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.LSTM(3),
        lambda: L.GRU(3, return_sequences=True),
        lambda: L.Bidirectional(L.LSTM(3)),
        lambda: L.MultiHeadAttention(2, 3),
        lambda: L.Conv1DTranspose(3, 2),
        lambda: L.SeparableConv1D(3, 2, depth_multiplier=2),
        lambda: L.DepthwiseConv1D(2, depth_multiplier=2),
        lambda: L.EinsumDense("abc,cde->abde", (None, 2, 5)),
    ],
)
def test_activations_are_laid_out_along_every_kind_of_kernel(layer):
    inputs = keras.Input((4, 6))
    layer = layer()
    outputs = layer(inputs, inputs) if "Attention" in type(layer).__name__ else layer(inputs)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32)
    pruner = Pruner(model, ConstantSparsity(0.5), criterion="entropy", data=(x,))
    pruner.update(0)
    for kernel in pruner.kernels:
        assert (kernel.variable.numpy() == 0).mean() == pytest.approx(0.5, abs=0.1)


def test_global_scope_ranks_all_kernels_together(model):
    model.get_layer("conv").kernel.assign(model.get_layer("conv").kernel * 1e4)
    pruner = Pruner(model, ConstantSparsity(0.9), scope="global", layers=["conv", "dense"])
    pruner.update(0)
    sizes = [k.variable.numpy().size for k in pruner.kernels]
    kept = [np.count_nonzero(k.variable.numpy()) for k in pruner.kernels]
    assert sum(kept) == round(sum(sizes) * 0.1)
    assert kept[0] == sizes[0]
    values = np.concatenate([np.abs(k.variable.numpy()).ravel() for k in pruner.kernels])
    assert np.count_nonzero(values) == sum(kept)


def test_global_scope_empties_no_kernel(model):
    model.get_layer("conv").kernel.assign(model.get_layer("conv").kernel * 1e-6)
    for pattern in ("unstructured", Channels()):
        pruner = Pruner(
            model, ConstantSparsity(0.9), scope="global", pattern=pattern, layers=["conv", "dense"]
        )
        pruner.update(0)
        assert all(mask.numpy().any() for mask in pruner.masks)
        assert pruner.overall_sparsity() >= 0.89
        pruner.detach()


@pytest.mark.parametrize("pattern", [Block(2, 4), NOfM(2, 4), Channels()])
def test_structured_patterns_in_a_fit(model, blobs, pattern):
    callback = Pruning(
        PolynomialDecay(0, 0.5, 0, 4, frequency=1), pattern=pattern, layers="dense", verbose=0
    )
    model.fit(*blobs, epochs=2, verbose=0, callbacks=[callback])
    kernel = model.get_layer("dense").kernel.numpy()
    assert (kernel == 0).mean() == 0.5
    if isinstance(pattern, NOfM):
        assert ((kernel.reshape(-1, 4, 16) != 0).sum(axis=1) == 2).all()
    elif isinstance(pattern, Block):
        blocks = (kernel != 0).reshape(kernel.shape[0] // 2, 2, 4, 4)
        assert (blocks.all(axis=(1, 3)) == blocks.any(axis=(1, 3))).all()
    else:
        assert ((kernel != 0).all(axis=0) == (kernel != 0).any(axis=0)).all()


def test_zeros_that_are_found_stay_and_fresh_zeros_do_not(model, blobs):
    dense, logits = model.get_layer("dense").kernel, model.get_layer("logits").kernel
    value = dense.numpy()
    value[::2] = 0
    dense.assign(value)
    logits.assign(np.zeros(logits.shape))
    found = Pruning(ConstantSparsity(0.25), layers=["dense", "logits"], verbose=0)
    model.fit(*blobs, epochs=2, verbose=0, callbacks=[found])
    assert not dense.numpy()[::2].any()
    assert dense.numpy()[1::2].all()
    assert (logits.numpy() == 0).mean() == 0.25
    fresh = Pruning(ConstantSparsity(0.25), layers="dense", preserve_zeros=False, verbose=0)
    model.fit(*blobs, epochs=2, verbose=0, callbacks=[fresh])
    assert (dense.numpy() == 0).mean() == 0.25


def test_tensorboard_and_the_logs_show_the_sparsity(model, blobs, tmp_path):
    callback = Pruning(ConstantSparsity(0.5), layers="conv", log_dir=str(tmp_path), verbose=0)
    history = model.fit(*blobs, epochs=2, verbose=0, callbacks=[callback])
    assert history.history["sparsity"] == [0.5, 0.5]
    tags = {
        value.tag
        for path in tmp_path.iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"sparsity/overall", "sparsity/conv"} <= tags


def test_a_custom_loop_hands_its_batch_to_the_criterion(model, blobs):
    batch = (blobs[0][:16], blobs[1][:16])
    with Pruner(model, ConstantSparsity(0.5), criterion="taylor") as pruner:
        with pytest.raises(ValueError, match="Expected `data=`"):
            pruner.update(0)
        assert pruner.update(0, batch=batch)
    assert pruner.overall_sparsity() == pytest.approx(0.5, abs=0.01)


def test_the_same_final_mask_as_tfmot(tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 8), (72, 10))]
    np.savez(tmp_path / "weights.npz", *weights)
    script = """
    import os, sys
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import numpy as np, tensorflow as tf, tf_keras
    import tensorflow_model_optimization as tfmot
    data = np.load(sys.argv[1])
    L = tf_keras.layers
    model = tf_keras.Sequential([
        L.Conv2D(8, 3, use_bias=False, input_shape=(5, 5, 2)), L.Flatten(),
        L.Dense(10, use_bias=False)])
    model.set_weights([data["arr_0"], data["arr_1"]])
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.83, 0, 6, frequency=2)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    pruned.compile(tf_keras.optimizers.SGD(0.0), "mse")
    pruned.fit(np.zeros((8, 5, 5, 2), "f"), np.zeros((8, 10), "f"), batch_size=1, verbose=0,
               callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    np.savez(sys.argv[2], *tfmot.sparsity.keras.strip_pruning(pruned).get_weights())
    """
    paths = [str(tmp_path / "weights.npz"), str(tmp_path / "tfmot.npz")]
    fresh.run(script, *paths)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            L.Conv2D(8, 3, use_bias=False),
            L.Flatten(),
            L.Dense(10, use_bias=False),
        ]
    )
    model.set_weights(weights)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.zeros((8, 5, 5, 2), np.float32), np.zeros((8, 10), np.float32)
    callback = Pruning(PolynomialDecay(0.0, 0.83, 0, 6, frequency=2), verbose=0)
    model.fit(x, y, batch_size=1, verbose=0, callbacks=[callback])
    theirs = np.load(paths[1])
    for index, ours in enumerate(model.get_weights()):
        np.testing.assert_array_equal(ours != 0, theirs[f"arr_{index}"] != 0)


def test_data_may_be_a_list_of_batches_but_no_iterator(model, blobs):
    x, y = blobs
    parts = [(x[:8], y[:8]), [x[8:16], y[8:16]]]
    schedule = ConstantSparsity(0.5)
    scoring = ScoringOptions(num_batches=2)
    pruner = Pruner(model, schedule, criterion="taylor", data=parts, scoring=scoring)
    pruner.update(0)
    assert pruner.overall_sparsity() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="an iterator can be read once"):
        Pruner(model, schedule, criterion="taylor", data=iter(parts))


def test_masks_of_channels_stay_beside_a_pruner():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(x))
    channels = ChannelPruner(model, ConstantSparsity(0.5))
    kernel = model.get_layer("conv").kernel
    (mine,) = masks.attached(kernel)
    pruner = Pruner(model, ConstantSparsity(0.5))
    assert mine in masks.attached(kernel)
    pruner.detach()
    assert masks.attached(kernel) == [mine]
    channels.finish()


def test_an_end_that_was_not_reached_is_said(model, blobs, capsys):
    callback = Pruning(PolynomialDecay(0.0, 0.5, 0, 1000))
    model.fit(*blobs, batch_size=16, callbacks=[callback], verbose=0)
    assert "before its end_step=1000" in capsys.readouterr().out
