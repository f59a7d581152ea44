"""What the pruner refuses, before training starts and before a weight has changed."""

import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.pruning import (
    SET,
    Block,
    ConstantSparsity,
    NOfM,
    PolynomialDecay,
    Pruner,
    RigL,
    ScoringOptions,
)
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.methods.threshold import Threshold


def weights_of(model):
    return [w.numpy() for w in model.weights]


def test_a_missing_tensorboard_is_named_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need the package tensorboard"):
        Pruning(ConstantSparsity(0.5), log_dir="logs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "nobody"}, r"match a layer that it can apply to. Received: 'nobody'"),
        ({"layers": L.LSTM}, "Received: <class .*LSTM'>"),
        ({"pattern": NOfM(2, 4)}, r"does not fit.*'conv'.*'depthwise'"),
        ({"pattern": Block(16, 1)}, r"does not fit.*'conv'"),
        ({"pattern": NOfM(1, 4), "layers": "dense"}, r"ends at a sparsity of 0.75"),
        ({"pattern": NOfM(2, 4), "scope": "global", "layers": "dense"}, "nothing to rank"),
        ({"scope": "everything"}, "`scope` must be"),
    ],
)
def test_bad_options_are_refused_before_training(model, blobs, options, message):
    callback = Pruning(ConstantSparsity(0.5), **options)
    before = [v.numpy() for v in model.weights]
    with pytest.raises(ValueError, match=message):
        model.fit(*blobs, verbose=0, callbacks=[callback])
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pruning(ConstantSparsity(0.5), criterion="taylor"), "data=None"),
        (lambda: Pruning(ConstantSparsity(0.5), criterion="entropy"), "data=None"),
        (lambda: Pruning(RigL(0.5, 10)), "RigL.*data=None"),
        (lambda: ScoringOptions(num_batches=0), "Received: num_batches=0"),
        (lambda: ScoringOptions(batch_size=0.5), "Received: batch_size=0.5"),
        (lambda: Pruning(ConstantSparsity(0.5), criterion="size"), "Received: criterion='size'"),
        (lambda: Pruning(ConstantSparsity(0.5), criterion="apoz"), "scores whole channels"),
        (lambda: Pruning(ConstantSparsity(0.5), pattern="rows"), "Received: pattern='rows'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_scores_are_refused(model):
    pruner = Pruner(model, ConstantSparsity(0.5), criterion=lambda kernel: kernel * np.nan)
    with pytest.raises(ValueError, match="NaN"):
        pruner.update(0)
    pruner.detach()
    pruner = Pruner(model, ConstantSparsity(0.5), criterion=lambda kernel: kernel.sum(axis=0))
    with pytest.raises(ValueError, match="one score per weight"):
        pruner.update(0)
    pruner.detach()


def test_movement_needs_a_step_before_it_can_score(model, blobs):
    callback = Pruning(ConstantSparsity(0.5), criterion="movement", verbose=0)
    with pytest.raises(ValueError, match="no scores before the first"):
        model.fit(*blobs, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (PolynomialDecay(0.0, 0.5, 2, 8, frequency=2), {"criterion": "taylor"}),
        (RigL(0.5, 8, frequency=2), {}),
    ],
)
def test_data_without_labels_is_found_out_before_training(model, blobs, method, options):
    before = weights_of(model)
    callback = Pruning(method, data=(blobs[0],), verbose=0, **options)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        model.fit(*blobs, batch_size=16, callbacks=[callback], verbose=0)
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_without_a_known_kernel_is_refused_before_training(blobs, odd):
    model = keras.Sequential([keras.Input((6, 6, 2)), L.Flatten(), odd(name="odd")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = weights_of(model)
    with pytest.raises(ValueError, match="No layer with a kernel was matched"):
        model.fit(*blobs, callbacks=[Pruning(ConstantSparsity(0.5), verbose=0)], verbose=0)
    np.testing.assert_array_equal(before[0], weights_of(model)[0])


def test_a_name_that_matches_nothing_is_told(model):
    with pytest.raises(ValueError, match=r"Received: 'logit'\. Did you mean 'logits'"):
        Pruner(model, ConstantSparsity(0.5), layers=["logit", keras.layers.Conv2D])
    with pytest.raises(ValueError, match="regular expression"):
        Pruner(model, ConstantSparsity(0.5), layers="logits(")


@pytest.mark.parametrize("method", [SET(0.5, 10), Threshold([1], 0.1, None)])
def test_methods_with_budgets_of_their_own_refuse_a_global_ranking(model, method):
    with pytest.raises(ValueError, match=r"Expected.* scope='layer'"):
        Pruner(model, method, scope="global")
