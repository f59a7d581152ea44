"""Channels masked during fit, float and quantized, and their removal."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from recipes import models
from tests.pruning.structure.oracle import outputs, relative_error
from tfcompress.pruning import ConstantSparsity, ScoringOptions
from tfcompress.pruning.structure import ChannelPruner, WidthOptions, shrink
from tfcompress.pruning.structure.callbacks import ChannelPruning


def network():
    """A residual network whose first batch norm has no scale, with a separable branch."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    y = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same")(y)
    y = layers.BatchNormalization()(layers.Conv2D(16, 1)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    x = layers.Dense(40, "sigmoid", name="hidden")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x))


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def callback(steps=22, **options):
    schedule = tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=steps, frequency=4)
    return ChannelPruning(schedule, verbose=0, round_to=2, **options)


def fit(model, digits, callbacks, epochs=3, **options):
    (x, y), _ = digits
    return model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=callbacks, **options)


@pytest.fixture(scope="module")
def masked(digits):
    keras.utils.set_random_seed(0)
    model = compiled(network())
    pruning = callback()
    history = fit(model, digits, [pruning])
    return model, pruning, history


def test_the_shrunk_copy_computes_the_same(masked, digits):
    model, pruning, history = masked
    assert history.history["macs_left"][-1] == pytest.approx(0.5, abs=0.02)
    smaller = shrink(model)
    inputs = [digits[1][0]]
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5
    ratio = tfc.count_macs(smaller) / tfc.count_macs(model)
    assert ratio == pytest.approx(pruning.pruner.left(), abs=1e-9)
    assert ratio == pytest.approx(0.5, abs=0.02)
    assert not pruning.pruner._variables or all(
        v.constraint is None for v in model.trainable_variables
    )


def test_masks_leave_widths_that_are_multiples():
    model = models.build("resnet8", (16, 16, 3), 5)
    with ChannelPruner(model, tfc.PolynomialDecay(0.0, 0.5, 0, 8, frequency=2)) as pruner:
        for step in range(9):
            pruner.update(step)
            assert pruner.left() >= 0.48
    assert pruner.left() == pytest.approx(0.5, abs=0.02)
    smaller = shrink(model)
    widths = [layer.filters for layer in smaller.layers if isinstance(layer, layers.Conv2D)]
    assert all(width % 8 == 0 for width in widths)
    assert sum(widths) < sum(o.filters for o in model.layers if isinstance(o, layers.Conv2D))


def test_masks_cover_every_member(masked):
    _, pruning, _ = masked
    dependencies, units = pruning.pruner.dependencies, pruning.pruner.units
    kept = dependencies.removed(units)
    seen = set()
    for member in dependencies.tracer.members:
        if member.labels is None or member.variable.name == "moving_variance":
            continue
        gone = np.compress(~kept.of(member.labels), np.asarray(member.variable), member.axis)
        assert (gone == 0).all(), member.variable.path
        seen.add(member.variable.name)
    assert seen >= {"kernel", "bias", "gamma", "beta", "moving_mean"}
    assert len(units) == len(set(units.tolist())) > 10


def test_a_second_fit_starts_from_the_zeros_and_never_grows_back(masked, digits):
    model, pruning, _ = masked
    copy = compiled(keras.models.clone_model(model))
    copy.set_weights(model.get_weights())
    again = ChannelPruning(tfc.ConstantSparsity(0.6, 0), verbose=0, round_to=1)
    fit(copy, digits, [again], epochs=1)
    assert set(pruning.pruner.units.tolist()) <= set(again.pruner.units.tolist())
    assert again.pruner.left() == pytest.approx(0.4, abs=0.02)


def test_quantized_the_shrunk_copy_computes_the_same_to_a_step(masked, digits):
    (x, _), (x_test, _) = digits
    model = tfc.quantize(masked[0], calibration_data=x[:128])
    smaller = shrink(model)
    assert type(smaller) is type(model)
    assert smaller.shrink_report.fractions["macs"] == pytest.approx(masked[1].pruner.left())
    before, after = outputs(model, [x_test])[0], outputs(smaller, [x_test])[0]
    step = float(next(v for v in model.layers[-1].variables if v.name == "scale").value)
    assert np.abs(before - after).max() <= step * 1.001
    assert np.abs(before).max() > 20 * step
    # A quantized model can be masked itself, and shrunk again.
    with ChannelPruner(smaller, tfc.ConstantSparsity(0.4, 0), round_to=2) as pruner:
        pruner.update(0)
    smallest = shrink(smaller)
    assert (
        np.abs(outputs(smaller, [x_test])[0] - outputs(smallest, [x_test])[0]).max() <= step * 1.001
    )
    assert tfc.count_macs(smallest) / tfc.count_macs(smaller) == pytest.approx(0.6, abs=0.03)


def test_custom_loop_and_step_without_optimizer():
    model = network()
    with ChannelPruner(model, tfc.ConstantSparsity(0.5, 2, frequency=10), round_to=2) as pruner:
        assert not pruner.update(0)
        assert pruner.left() == 1.0
        assert pruner.update(2)
        assert not pruner.is_due(3)
        assert pruner.left() == pytest.approx(0.5, abs=0.02)
    assert tfc.count_macs(shrink(model)) == pytest.approx(0.5 * tfc.count_macs(model), rel=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "time"}, "budget"),
        ({"criterion": "taylor"}, "looks at batches"),
        ({"criterion": "movement"}, "adds up over training"),
        ({"round_to": 0}, "round_to"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ChannelPruner(network(), tfc.ConstantSparsity(0.5, 0), **options)


def test_channels_that_are_normalized_together_are_not_masked():
    inputs = keras.Input((8, 8, 3))
    x = layers.LayerNormalization()(layers.Conv2D(16, 3, name="normed")(inputs))
    x = layers.Conv2D(16, 3, name="free")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    pruner = ChannelPruner(model, ConstantSparsity(0.4), round_to=1)
    assert "normalizes over" in pruner.dependencies.kept["normed"]
    pruner.update(0)
    assert pruner.left() == pytest.approx(0.6, abs=0.03)
    pruner.finish()
    assert model.get_layer("normed").kernel.numpy().any(axis=(0, 1, 2)).all()
    smaller = shrink(model, round_to=1)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(model(x), smaller(x), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"where the least is"):
        ChannelPruner(model, ConstantSparsity(0.95), widths=WidthOptions(min_kept=0.5))


def test_a_dense_head_with_its_activation_inside(digits):
    """Its units are silent on few examples, which makes them no constants."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu")(image)
    x = layers.Dense(64, "relu", name="hidden")(layers.GlobalAveragePooling2D()(x))
    model = compiled(keras.Model(image, layers.Dense(10)(x)))
    pruning = ChannelPruning(ConstantSparsity(0.5, 4), verbose=0, round_to=1)
    fit(model, digits, [pruning], epochs=1)
    smaller = shrink(model)
    removed = sum(map(len, smaller.shrink_report.removed.values()))
    assert removed == len(pruning.pruner.units)
    inputs = [digits[1][0]]
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5


def test_channels_with_an_influence_at_zero_are_not_masked():
    """A quotient of zeros is no number, and a sum over sigmoids of zeros is not zero."""
    inputs = keras.Input((8,))
    divided = layers.Dense(16, name="above")(inputs) / layers.Dense(16, name="below")(inputs)
    x = layers.Dense(16, "relu", name="free")(layers.Dense(16, name="middle")(divided))
    gate = layers.Dense(16, "sigmoid", name="gate")(inputs)
    x = x * keras.ops.sum(gate, axis=-1, keepdims=True)
    model = keras.Model(inputs, layers.Dense(3)(x))
    data = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    before = model.get_weights()
    pruner = ChannelPruner(model, ConstantSparsity(0.4), budget="parameters", round_to=1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {"above", "below", "gate"} <= set(pruner.dependencies.kept)
    assert "has an influence even where it is zero" in pruner.dependencies.kept["gate"]
    pruner.update(0)
    pruner.finish()
    assert np.isfinite(model(data)).all()
    smaller = shrink(model)
    assert smaller.count_params() / model.count_params() == pytest.approx(pruner.left(), abs=1e-9)
    np.testing.assert_allclose(model(data), smaller(data), rtol=1e-4, atol=1e-5)


def test_inside_a_distiller_its_loss_is_what_scores(digits):
    (x, y), _ = digits
    teacher, student = network(), network()
    distiller = compiled(tfc.Distiller(teacher, student, tfc.LogitsDistillation()))
    scoring = ScoringOptions(num_batches=1)
    options = {"criterion": "taylor", "data": (x, y), "scoring": scoring}
    pruning = ChannelPruning(ConstantSparsity(0.5, 1), verbose=0, round_to=2, **options)
    distiller.fit(x, y, batch_size=256, epochs=1, verbose=0, callbacks=[pruning])
    smaller = shrink(student)
    inputs = [digits[1][0]]
    assert relative_error(outputs(student, inputs), outputs(smaller, inputs)) < 1e-5
    assert tfc.count_macs(smaller) / tfc.count_macs(student) == pytest.approx(0.5, abs=0.03)
    assert all(np.asarray(v).any() for v in teacher.trainable_variables if v.name == "kernel")


@pytest.mark.stock
@pytest.mark.parametrize("mode", ["steps_per_execution", "mixed_bfloat16"])
def test_ways_of_training(digits, mode):
    keras.utils.set_random_seed(0)
    model = network()
    if mode == "mixed_bfloat16":
        model = keras.models.clone_model(
            model,
            clone_function=lambda layer: type(layer).from_config(
                {**layer.get_config(), "dtype": "mixed_bfloat16"}
            ),
        )
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=4 if mode == "steps_per_execution" else 1,
    )
    pruning = callback(steps=8)
    fit(model, digits, [pruning], epochs=1)
    assert pruning.pruner.left() == pytest.approx(0.5, abs=0.03)
    smaller = shrink(model)
    assert tfc.count_macs(smaller) / tfc.count_macs(model) == pytest.approx(pruning.pruner.left())
    tolerance = 1e-5 if mode == "steps_per_execution" else 0.05
    inputs = [digits[1][0]]
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < tolerance
