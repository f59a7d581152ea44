"""`shrink`: targets, bounds, scores, constants, and what comes out is ordinary Keras."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from recipes import models
from tests import fresh
from tests.pruning.structure.graphs import PATTERNS, build
from tests.pruning.structure.oracle import outputs, plain, relative_error, sample
from tfcompress.pruning import ScoringOptions
from tfcompress.pruning.structure import Dependencies, WidthOptions, shrink
from tfcompress.pruning.structure.removal import remove
from tfcompress.pruning.structure.widths import Bounds


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return models.build("resnet8", (16, 16, 3), 5)


@pytest.mark.parametrize("ranking", ["global", "uniform"])
@pytest.mark.parametrize("target", ["target_macs", "target_parameters"])
def test_targets_are_met_as_counted_on_the_result(small, ranking, target):
    smaller = shrink(small, widths=WidthOptions(ranking=ranking), **{target: 0.5})
    count = tfc.count_macs if target == "target_macs" else keras.Model.count_params
    ratio = count(smaller) / count(small)
    assert ratio == pytest.approx(0.5, abs=0.02)
    name = target.split("_")[1]
    assert smaller.shrink_report.fractions[name] == pytest.approx(ratio, abs=1e-9)
    step = smaller.shrink_report.round_to
    full = {layer.name: layer for layer in small.layers}
    for layer in smaller.layers:
        if type(layer) is layers.Conv2D and layer.filters != full[layer.name].filters:
            assert layer.filters % step == 0


def test_rounding_that_misses_is_relaxed_and_said():
    model = plain()
    report = shrink(model, target_macs=0.72).shrink_report
    assert report.round_to < 8
    assert any("not of round_to=8" in note for note in report.notes)
    assert report.fractions["macs"] == pytest.approx(0.72, abs=0.02)


def test_the_result_trains_and_loads_without_us(tmp_path):
    model = shrink(build(PATTERNS["residual"]), target_macs=0.5)
    model.compile("sgd", "mse")
    model.fit(*[sample(model)[0], np.zeros((2, 3), "float32")], verbose=0)
    path = tmp_path / "small.keras"
    model.save(path)
    x = sample(model)[0]
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; m = keras.models.load_model(sys.argv[1] + '/small.keras');"
        "assert 'tfcompress' not in sys.modules;"
        "np.save(sys.argv[1] + '/y.npy', m.predict(np.load(sys.argv[1] + '/x.npy'), verbose=0))"
    )
    fresh.run(code, tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), outputs(model, [x])[0], atol=1e-5)


def test_bounds_and_min_kept():
    model = plain()
    smaller = shrink(model, target_macs=0.7, round_to=1, bounds={"fir.*": (1.0, 1.0)})
    assert smaller.get_layer("first").filters == 8
    assert smaller.get_layer("second").filters < 6
    with pytest.raises(ValueError, match="Expected a target that the model and the bounds allow"):
        shrink(model, target_macs=0.1, widths=WidthOptions(min_kept=0.8))


def test_bounds_of_a_layer_that_only_passes_channels():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 1, name="expand")(image)
    x = layers.Conv2D(32, 1, name="project")(layers.DepthwiseConv2D(3, name="depthwise")(x))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    smaller = shrink(model, target_macs=0.6, bounds={"depthwise": (1.0, 1.0)})
    assert smaller.get_layer("expand").filters == 32
    assert smaller.get_layer("project").filters < 32


def test_removed_channels_by_path_and_without_gates():
    def branch(name):
        inputs = keras.Input((6, 4))
        x = layers.GRU(16, return_sequences=True, name="same")(inputs)
        return keras.Model(inputs, layers.GRU(8, name="last")(x), name=name)

    inputs = keras.Input((6, 4))
    x = layers.Concatenate()([branch("a")(inputs), branch("b")(inputs)])
    model = keras.Model(inputs, layers.Dense(2)(x))
    smaller = shrink(model, target_macs=0.5)
    removed = smaller.shrink_report.removed
    for path in ("a/same", "b/same"):
        outer, name = path.split("/")
        left = next(o for o in smaller.layers if o.name in (name, f"{outer}_{name}"))
        assert len(removed[path]) == 16 - left.units > 0
        assert max(removed[path]) < 16
    dependencies = Dependencies(model)
    again = remove(dependencies, dependencies.units_of(removed))
    assert relative_error(outputs(smaller, sample(model)), outputs(again, sample(model))) == 0


def test_a_layer_that_hardly_costs_is_not_emptied_for_nothing():
    image = keras.Input((16, 16, 1))
    x = layers.MaxPooling2D(4)(layers.Conv2D(16, 3, activation="relu", name="a")(image))
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Dense(48, "relu", name="hidden")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(3)(x))
    # Three of four scores are the dense layer's, and the least.
    hidden = model.get_layer("hidden")
    hidden.kernel.assign(hidden.kernel * np.linspace(1e-6, 1, 48))
    smaller = shrink(model, target_macs=0.5, round_to=1)
    assert smaller.get_layer("hidden").units == 48
    assert tfc.count_macs(smaller) / tfc.count_macs(model) == pytest.approx(0.5, abs=0.02)
    (note,) = [n for n in smaller.shrink_report.notes if "hardly cost" in n]
    assert note.startswith("hidden stays whole")
    # Where parameters count, it does; and where nothing else can give.
    assert shrink(model, target_parameters=0.5, round_to=1).get_layer("hidden").units < 48
    fixed = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert (
        shrink(
            model,
            target_macs=0.98,
            bounds=fixed,
            widths=WidthOptions(tolerance=0.001),
            round_to=1,
        )
        .get_layer("hidden")
        .units
        < 48
    )


def test_measured_cost():
    calls = []

    def cost(model):
        calls.append(model)
        return float(model.count_params())

    model = plain()
    smaller = shrink(model, cost=cost, target_cost=0.5, round_to=1)
    assert smaller.count_params() == pytest.approx(0.5 * model.count_params(), rel=0.1)
    assert 2 <= len(calls) <= 15


def test_iterative_targets_multiply(small):
    once = shrink(small, target_macs=0.7)
    once.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    once.fit(sample(once, 8)[0], np.arange(8) % 5, verbose=0)
    twice = shrink(once, target_macs=0.7)
    assert tfc.count_macs(twice) / tfc.count_macs(small) == pytest.approx(0.49, abs=0.03)


def test_how_layers_of_a_group_are_reduced_and_made_comparable():
    """The second of three channels is strong in one layer of the sum and weak in the other."""
    inputs = keras.Input((4,))
    branches = [layers.Dense(3, use_bias=False, name=name)(inputs) for name in "ab"]
    x = layers.Dense(3, use_bias=False, name="wide")(layers.add(branches))
    model = keras.Model(inputs, layers.Dense(2)(layers.ReLU()(x)))
    model.get_layer("a").kernel.assign(np.ones((4, 1)) * [2.0, 9.0, 3.0])
    model.get_layer("b").kernel.assign(np.ones((4, 1)) * [2.0, 0.1, 3.0])
    # Larger in all, so raw scores spare it; at a mean of one its first channel is the least.
    model.get_layer("wide").kernel.assign(np.ones((3, 1)) * [10.0, 90.0, 80.0])

    def kept(threshold, **options):
        smaller = shrink(model, threshold=threshold, widths=WidthOptions(**options))
        return smaller.get_layer("a").kernel.numpy()[0], smaller.get_layer("wide").units

    np.testing.assert_array_equal(kept(4, reduction="min", normalization=None)[0], [2, 3])
    np.testing.assert_array_equal(kept(10, reduction="max", normalization=None)[0], [9, 3])
    np.testing.assert_array_equal(kept(25, reduction="sum", normalization=None)[0], [9])
    assert kept(35, normalization=None)[1] == 2
    assert kept(0.4, normalization="mean")[1] == 2
    with pytest.raises(ValueError, match="Nothing to remove"):
        shrink(model, threshold=0.05, widths=WidthOptions(normalization="max"))


def test_slimming_by_threshold():
    model = plain()
    gamma = np.array([1.0, 1e-6, 0.8, 0.9, 1e-5, 1.1, 0.01, 0.7], "float32")
    model.get_layer("norm").gamma.assign(gamma)
    raw = WidthOptions(normalization=None)
    smaller = shrink(model, criterion="batch_norm_scale", widths=raw, threshold=0.02)
    np.testing.assert_array_equal(smaller.get_layer("norm").gamma, gamma[[0, 2, 3, 5, 7]])
    # The second convolution has no batch norm, so nothing is said of it.
    assert smaller.get_layer("second").filters == 6
    assert any("says nothing of second" in note for note in smaller.shrink_report.notes)


def test_a_shared_criterion_needs_the_compiled_loss_or_one_given():
    model = plain()
    data = (sample(model, 16)[0], np.arange(16) % 3)

    def loss(model, x, y, _):
        entropy = keras.losses.sparse_categorical_crossentropy
        return keras.ops.mean(entropy(y, model(x, training=True), from_logits=True))

    scoring = ScoringOptions(loss=loss)
    for criterion in ("taylor", "fisher", "entropy", "random", "l2", lambda kernel: kernel**4):
        smaller = shrink(
            model, criterion=criterion, target_macs=0.6, round_to=1, data=data, scoring=scoring
        )
        assert tfc.count_macs(smaller) < 0.65 * tfc.count_macs(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing to remove"),
        ({"target_macs": 0.5, "target_parameters": 0.5}, "Expected one target"),
        ({"target_macs": 1.5}, r"must lie in \(0, 1\)"),
        ({"target_cost": 0.5}, "Expected `cost` and `target_cost` together"),
        ({"target_macs": 0.5, "criterion": "magnitud"}, "for whole channels also"),
        ({"target_macs": 0.5, "criterion": "apoz"}, "data=None"),
        ({"target_macs": 0.5, "round_to": 0}, "`round_to` must be"),
        ({"target_macs": 0.5, "bounds": {"nothing": (0, 1)}}, "`bounds` to match"),
        ({"target_macs": 0.5, "bounds": {"first": (0.5, 0.2)}}, "least ≤ most"),
        ({"target_macs": 0.5, "bounds": {"first": 0.5}}, "least ≤ most"),
        ({"target_macs": 0.5, "merge": -1}, "tolerance"),
        ({"threshold": -1.0}, "no channel has a score below"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        shrink(plain(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "local"}, "`ranking` must be"),
        ({"reduction": "median"}, "`reduction` must be one of"),
        ({"normalization": "none"}, "`normalization` must be one of"),
        ({"min_kept": 1.5}, r"`min_kept` must lie in \[0, 1\]. Received: 1.5"),
        ({"tolerance": -0.1}, "`tolerance` must not be negative"),
    ],
)
def test_wrong_width_options(options, message):
    with pytest.raises(ValueError, match=message):
        WidthOptions(**options)


def test_a_model_without_groups():
    image = keras.Input((4,))
    with pytest.raises(ValueError, match=r"No channel .* \{'logits': 'is an output"):
        shrink(keras.Model(image, layers.Dense(3, name="logits")(image)), target_macs=0.5)


def test_units_of_a_bound():
    assert Bounds(24, 1, 24, 8).allowed.tolist() == [8, 16, 24]
    assert Bounds(20, 1, 20, 8).allowed.tolist() == [8, 16, 20]
    assert Bounds(20, 10, 18, 8).allowed.tolist() == [16]
    assert Bounds(4, 1, 4, 8).allowed.tolist() == [4]
    assert Bounds(20, 12, 14, 8).allowed.tolist() == [14]


def test_report_names_what_stays():
    model = plain()
    text = str(shrink(model, target_macs=0.6, round_to=1).shrink_report)
    assert "% of macs" in text
    assert "logits" in text
    assert "is an output of the model" in text
    assert len(Dependencies(model).groups) == 2


def test_groups_without_a_score_keep_what_they_have():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, name="plain")(inputs)
    x = layers.Conv2D(16, 3, use_bias=False, name="normed")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    head = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, head)
    model.get_layer("norm").gamma.assign(np.linspace(0.1, 1, 16))
    options = {"criterion": "batch_norm_scale", "target_macs": 0.6, "round_to": 1}
    for ranking in ("global", "uniform"):
        smaller = shrink(model, widths=WidthOptions(ranking=ranking), **options)
        assert smaller.get_layer("plain").filters == 16
        assert smaller.get_layer("normed").filters < 16
    first = keras.Model(inputs, layers.Conv2D(4, 1)(model.get_layer("plain").output))
    with pytest.raises(ValueError, match="says nothing of plain"):
        shrink(first, **options)
