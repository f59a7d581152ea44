"""`shrink`: targets, bounds, scores, constants, and what comes out is ordinary Keras."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from recipes import models
from tests.pruning.structure.graphs import PATTERNS, build
from tests.pruning.structure.oracle import outputs, randomize, relative_error, sample, zeroed
from tfcompress.pruning.structure import Dependencies, rules, shrink
from tfcompress.pruning.structure.rules import register_rule
from tfcompress.pruning.structure.tracer import Role
from tfcompress.pruning.structure.widths import Bounds


def plain(padding="valid", use_bias=True, activation="relu", norm=True):
    """conv → norm → activation → conv (read with `padding`) → global pooling → dense."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(image)
    x = layers.BatchNormalization(name="norm")(x) if norm else x
    x = layers.Activation(activation)(x)
    x = layers.Conv2D(6, 3, padding=padding, use_bias=use_bias, name="second")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    randomize(model)
    return model


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return models.build("resnet8", (16, 16, 3), 5)


@pytest.mark.parametrize("ranking", ["global", "uniform"])
@pytest.mark.parametrize("target", ["target_macs", "target_parameters"])
def test_targets_are_met_as_counted_on_the_result(small, ranking, target):
    smaller = shrink(small, ranking=ranking, **{target: 0.5})
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
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), outputs(model, [x])[0], atol=1e-5)


def test_bounds_and_min_kept():
    model = plain()
    smaller = shrink(model, target_macs=0.7, round_to=1, bounds={"fir.*": (1.0, 1.0)})
    assert smaller.get_layer("first").filters == 8
    assert smaller.get_layer("second").filters < 6
    with pytest.raises(ValueError, match="Expected a target that the model and the bounds allow"):
        shrink(model, target_macs=0.1, min_kept=0.8)


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
    twice = shrink(once, target_macs=0.7)
    assert tfc.count_macs(twice) / tfc.count_macs(small) == pytest.approx(0.49, abs=0.03)


def silence(model, channels, beta):
    """What training with a penalty on γ leaves: channels that emit a constant."""
    norm = model.get_layer("norm")
    gamma, shift = np.array(norm.gamma), np.array(norm.beta)
    gamma[channels], shift[channels] = 0.0, beta
    norm.gamma.assign(gamma)
    norm.beta.assign(shift)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_constants_move_into_the_next_bias(use_bias, activation):
    model = plain(use_bias=use_bias, activation=activation)
    silence(model, [1, 4, 5], [0.7, -0.3, 1.5])
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 5
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    assert "moved into second" in smaller.shrink_report.notes[-1]


def test_a_batch_norm_takes_a_constant_where_there_is_no_bias():
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="first")(image))
    x = layers.Conv2D(6, 3, use_bias=False)(x)
    x = layers.BatchNormalization(name="after")(x)
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    randomize(model)
    silence(model, [0, 2], [1.0, -1.0])
    smaller = shrink(model)
    assert smaller.count_params() == model.count_params() - 2 * (27 + 1 + 4 + 9 * 6)
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5


def test_same_padding_refuses_a_constant_and_says_so():
    model = plain(padding="same")
    silence(model, [1, 4], [0.7, -0.3])
    # ReLU of -0.3 is zero, which no border changes.
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 7
    (note,) = [n for n in smaller.shrink_report.notes if "stay" in n]
    assert "'second' reads with padding 'same'" in note
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    silence(model, [1, 4], [0.7, 0.3])
    with pytest.raises(ValueError, match=r"Nothing to remove.*missing at the border"):
        shrink(model)


def test_dead_is_not_taken_for_what_is_only_quiet():
    model = plain(norm=False)
    kernel, bias = (
        np.array(model.get_layer("first").kernel),
        np.array(model.get_layer("first").bias),
    )
    kernel[..., 2], bias[2] = 0.0, 0.4
    kernel[..., 3], bias[3] = 1e-3 * kernel[..., 3], -5.0
    model.get_layer("first").kernel.assign(kernel)
    model.get_layer("first").bias.assign(bias)
    assert shrink(model).get_layer("first").filters == 7


def test_a_layer_is_never_emptied():
    model = plain()
    silence(model, list(range(8)), -1.0)
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 1
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5


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
        smaller = shrink(model, threshold=threshold, **options)
        return smaller.get_layer("a").kernel.numpy()[0], smaller.get_layer("wide").units

    np.testing.assert_array_equal(kept(4, reduction="min", normalization=None)[0], [2, 3])
    np.testing.assert_array_equal(kept(10, reduction="max", normalization=None)[0], [9, 3])
    np.testing.assert_array_equal(kept(25, reduction="sum", normalization=None)[0], [9])
    assert kept(35, normalization=None)[1] == 2
    assert kept(0.4, normalization="mean")[1] == 2
    with pytest.raises(ValueError, match="Nothing to remove"):
        shrink(model, threshold=0.05, normalization="max")


def test_slimming_by_threshold():
    model = plain()
    gamma = np.array([1.0, 1e-6, 0.8, 0.9, 1e-5, 1.1, 0.01, 0.7], "float32")
    model.get_layer("norm").gamma.assign(gamma)
    smaller = shrink(model, criterion="batch_norm_scale", normalization=None, threshold=0.02)
    np.testing.assert_array_equal(smaller.get_layer("norm").gamma, gamma[[0, 2, 3, 5, 7]])
    # The second convolution has no batch norm, so nothing is said of it.
    assert smaller.get_layer("second").filters == 6
    assert any("says nothing of second" in note for note in smaller.shrink_report.notes)


def test_merging_of_duplicates_changes_nothing():
    model = plain()
    first, norm = model.get_layer("first"), model.get_layer("norm")
    for variable in (*first.variables, *norm.variables):
        value = np.array(variable)
        value[..., 5], value[..., 6] = value[..., 2], value[..., 2]
        variable.assign(value)
    smaller = shrink(model, merge=1e-6)
    assert smaller.get_layer("first").filters == 6
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    # Without the rows of what went, it would not be the same.
    assert not np.allclose(
        smaller.get_layer("second").kernel,
        np.array(model.get_layer("second").kernel)[:, :, [0, 1, 2, 3, 4, 7]],
    )


def test_a_shared_criterion_needs_the_compiled_loss_or_one_given():
    model = plain()
    data = (sample(model, 16)[0], np.arange(16) % 3)

    def loss(model, x, y, _):
        entropy = keras.losses.sparse_categorical_crossentropy
        return keras.ops.mean(entropy(y, model(x, training=True), from_logits=True))

    for criterion in ("taylor", "fisher", "entropy", "random", "l2", lambda kernel: kernel**4):
        smaller = shrink(
            model, criterion=criterion, target_macs=0.6, round_to=1, data=data, loss=loss
        )
        assert tfc.count_macs(smaller) < 0.65 * tfc.count_macs(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing to remove"),
        ({"target_macs": 0.5, "target_parameters": 0.5}, "Expected one target"),
        ({"target_macs": 1.5}, r"must lie in \(0, 1\)"),
        ({"target_cost": 0.5}, "Expected `cost` and `target_cost` together"),
        ({"target_macs": 0.5, "criterion": "magnitud"}, "for channels also"),
        ({"target_macs": 0.5, "criterion": "apoz"}, "data=None"),
        ({"target_macs": 0.5, "ranking": "local"}, "ranking"),
        ({"target_macs": 0.5, "bounds": {"nothing": (0, 1)}}, "matches none"),
        ({"target_macs": 0.5, "bounds": {"first": (0.5, 0.2)}}, "least ≤ most"),
        ({"target_macs": 0.5, "bounds": {"first": 0.5}}, "least ≤ most"),
        ({"target_macs": 0.5, "merge": -1}, "tolerance"),
        ({"threshold": -1.0}, "no channel has a score below"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        shrink(plain(), **options)


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


def test_rows_of_a_table_that_agree_make_no_constant():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    table = model.get_layer("table").embeddings
    value = np.random.default_rng(0).normal(size=(20, 8))
    value[:2] = 0  # Padding and unknown words.
    table.assign(value)
    with pytest.raises(ValueError, match="Nothing to remove"):
        shrink(model, round_to=1)
    value[:, [2, 5]] = [0.0, 0.7]
    table.assign(value)
    smaller = shrink(model, round_to=1)
    assert smaller.get_layer("table").output_dim == 6
    words = np.arange(14).reshape(2, 7)
    np.testing.assert_allclose(model(words), smaller(words), rtol=1e-5, atol=1e-6)


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
        smaller = shrink(model, ranking=ranking, **options)
        assert smaller.get_layer("plain").filters == 16
        assert smaller.get_layer("normed").filters < 16
    first = keras.Model(inputs, layers.Conv2D(4, 1)(model.get_layer("plain").output))
    with pytest.raises(ValueError, match="says nothing of plain"):
        shrink(first, **options)


def test_macs_of_mixed_positions_are_those_of_the_result():
    inputs = keras.Input((16, 12))
    x = layers.Dense(24, "relu", name="features")(inputs)
    x = layers.Dense(32, "relu", name="tokens")(layers.Permute((2, 1))(x))
    x = layers.GlobalAveragePooling1D()(layers.Permute((2, 1))(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    smaller = shrink(model, target_macs=0.7, round_to=1)
    left = tfc.count_macs(smaller) / tfc.count_macs(model)
    # By the sizes of the kernels alone, which run fewer times too, the search would end below 0.6.
    assert left == pytest.approx(0.7, abs=0.02)
    assert smaller.shrink_report.fractions["macs"] == pytest.approx(left)


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_codebooks_stay_and_follow_their_channels(scope):
    inputs = keras.Input((16,))
    x = layers.Dense(16, "relu", name="square")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(layers.Dense(16, name="b")(x)))
    clustered = tfc.cluster(model, 16 if scope == "layer" else 4, scope=scope)
    smaller = shrink(clustered, target_parameters=0.6, round_to=1)
    randomly = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    dependencies = Dependencies(clustered)
    units = dependencies.units_of(smaller.shrink_report.removed)
    expected = zeroed(dependencies, units, [randomly])
    assert relative_error(expected, outputs(smaller, [randomly])) < 1e-5


@keras.saving.register_keras_serializable("tests.structure")
class Mix(keras.layers.Layer):
    """A dense layer of the user's own."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.width), name="w")

    def call(self, x):
        return keras.ops.matmul(x, self.w)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_layers_that_a_user_registered(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))

    @register_rule(Mix)
    def mix(t, node):
        layer, x = node.operation, t.of(node.inputs[0])
        out = t.made(layer, layer.width)
        t.member(layer, "w", 0, x[-1], Role.INPUT)
        t.member(layer, "w", 1, out, Role.OUTPUT)
        t.resize(layer, lambda kept: {"width": kept.count(out)})
        return (*x[:-1], out)

    inputs = keras.Input((6,))
    x = layers.Dense(16, "relu", name="first")(inputs)
    x = layers.Dense(16, "relu", name="last")(Mix(16, name="mix")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    smaller = shrink(model, target_parameters=0.6, round_to=1)
    # Magnitude has no score for a weight that is in no table of kernels: it stays as wide.
    assert smaller.get_layer("mix").width == 16
    assert smaller.get_layer("first").units + smaller.get_layer("last").units < 32


@pytest.mark.parametrize("renorm", [False, True])
def test_layers_that_start_from_arrays_or_renormalize(renorm):
    start = keras.initializers.Constant(np.random.default_rng(0).normal(size=(20, 8)).tolist())
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, embeddings_initializer=start, name="table")(inputs)
    x = layers.BatchNormalization(renorm=renorm)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    smaller = shrink(model, target_parameters=0.6, round_to=1)
    width = smaller.get_layer("table").output_dim
    assert width < 8
    assert {v.shape[0] for v in smaller.layers[2].variables} == {width}
    assert np.all(np.isfinite(smaller(np.arange(14).reshape(2, 7))))
