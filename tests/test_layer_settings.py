"""Every argument that chooses layers takes the same keys in the same order, and refuses alike."""

import dataclasses
import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.model.lookup import look_up
from tfcompress.pruning import ConstantSparsity, Pruner, Regularization, ThresholdPruning
from tfcompress.pruning.structure import ChannelPruner, Dependencies
from tfcompress.pruning.structure.planner import Planner

#: The base class of Keras' convolutions.
BaseConv = layers.Conv2D.__mro__[1]


class WideDense(layers.Dense):
    """A user's subclass, which `Dense` stands for too."""


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, name="stem")(inputs)
    body = keras.Sequential(
        [keras.Input((6, 6, 8)), layers.Conv2D(8, 3, name="conv")], name="backbone"
    )
    x = layers.Reshape((16, 8), name="line")(body(x))
    x = layers.Flatten(name="flat")(layers.Conv1D(8, 3, name="wide")(x))
    return keras.Model(inputs, layers.Dense(6, name="head")(layers.Dense(16, name="hidden")(x)))


def by_name(model, settings):
    return quantized(model, tfc.QuantizationConfig(None, by_name=settings))


def by_type(model, settings):
    return quantized(model, tfc.QuantizationConfig(None, by_type=settings))


def quantized(model, config):
    return {e.name.rpartition("/")[2]: e.weights for e in tfc.plan(model, config) if e.weights}


def num_clusters(model, settings):
    kernels = tfc.clustering_report(tfc.cluster(model, settings, init="linear")).kernels
    return {name: k for name, (_, k, _, _) in kernels.items()}


def ranks(model, settings):
    forms = tfc.plan_factorization(model, ranks=settings, methods=("svd",)).forms
    return {name: form.ranks[0] for name, form in forms.items()}


def sensitivity(model, settings):
    tfc.plan_factorization(model, target_macs=0.9, sensitivity=settings)


def bounds(model, settings):
    planner = Planner(Dependencies(model), settings, 0.0)
    return {
        group.name: low
        for group, (low, _) in zip(planner.groups, planner._fractions, strict=True)
        if low
    }


def shrink_bounds(model, settings):
    tfc.shrink(model, target_macs=0.8, round_to=1, bounds=settings)


def channel_pruner_bounds(model, settings):
    ChannelPruner(model, ConstantSparsity(0.1), bounds=settings, round_to=1).finish()


def pruner_layers(model, settings):
    with Pruner(model, ConstantSparsity(0.5), layers=list(settings)) as pruner:
        return dict.fromkeys(pruner.names)


def threshold_layers(model, settings):
    callback = ThresholdPruning(3, threshold=0.1, layers=list(settings), verbose=0)
    callback.set_model(model)
    callback.pruner.detach()
    return dict.fromkeys(callback.pruner.names)


def regularization_layers(model, settings):
    model.compile("sgd", "mse")
    callback = Regularization(l1=1e-3, layers=list(settings))
    callback.set_model(model)
    callback.on_train_end()
    return {piece.target.variable.path.split("/")[-2]: None for piece in callback.pieces}


def keep_apart(model, settings):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    shared = tfc.share_weights([model, copy], tolerance=0.0, keep_apart=list(settings))
    return {
        name: None
        for (index, name), reason in shared.left_alone.items()
        if index == 0 and reason == "kept apart, as asked"
    }


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument under test: `chosen(model, settings)` returns layer → what it got."""

    name: str
    chosen: Callable
    low: object = None
    high: object = None
    kinds: tuple[str, ...] = ("name", "type")


W4, W5 = (tfc.Scheme(tfc.WeightScheme(num_bits=n)) for n in (4, 5))
MAPPINGS = [
    Argument("by_name", by_name, W4, W5, ("name",)),
    Argument("by_type", by_type, W4, W5, ("type",)),
    Argument("num_clusters", num_clusters, 4, 5),
    Argument("ranks", ranks, 1, 2),
    Argument("bounds", bounds, (0.25, 1.0), (0.5, 1.0)),
]
LISTS = [
    Argument("layers", pruner_layers),
    Argument("layers", threshold_layers),
    Argument("layers", regularization_layers),
    Argument("keep_apart", keep_apart),
]
#: Arguments with several entrances, of which only the refusals are compared.
ENTRANCES = [
    Argument("sensitivity", sensitivity, 1.0),
    Argument("bounds", shrink_bounds, (0.25, 1.0)),
    Argument("bounds", channel_pruner_bounds, (0.25, 1.0)),
]


def each(arguments, kind=None):
    chosen = [a for a in arguments if kind is None or kind in a.kinds]
    return pytest.mark.parametrize("argument", chosen, ids=lambda a: a.chosen.__name__)


def label(value):
    """The id of a case, the same in every process: the order of a set is not."""
    return "+".join(sorted(value)) if isinstance(value, set) else str(value)


@each(MAPPINGS + LISTS, "name")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("stem", {"stem"}),
        ("conv", {"conv"}),
        ("backbone/conv", {"conv"}),
        ("backbone/.*", {"conv"}),
        ("stem|hid.*", {"stem", "hidden"}),
        (re.compile("^h|wid"), {"hidden", "wide"}),
    ],
    ids=label,
)
def test_a_name_a_path_and_an_expression(argument, key, expected, model):
    found = argument.chosen(model, {key: argument.low})
    # Not every technique acts on the last layer.
    assert {name.rpartition("/")[2] for name in found} - {"head"} == expected


@each(MAPPINGS + LISTS, "type")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (layers.Conv2D, {"stem", "conv"}),
        ("Conv2D", {"stem", "conv"}),
        ("Conv1D", {"wide"}),
        (BaseConv, {"stem", "conv", "wide"}),
        ("BaseConv", {"stem", "conv", "wide"}),
        (layers.Dense, {"hidden"}),
    ],
    ids=label,
)
def test_a_type_with_its_subclasses(argument, key, expected, model):
    found = argument.chosen(model, {key: argument.low})
    assert {name.rpartition("/")[2] for name in found} - {"head"} == expected


@each(MAPPINGS, "name")
def test_the_exact_name_goes_before_an_expression(argument, model):
    for settings in (
        {".*": argument.low, "hidden": argument.high},
        {"hid.*": argument.high, ".*": argument.low},
    ):
        found = argument.chosen(model, settings)
        assert found["hidden"] != found["wide"]
        assert found["hidden"] == argument.chosen(model, {"hidden": argument.high})["hidden"]


@each(MAPPINGS, "type")
def test_the_own_class_goes_before_a_base_class(argument, model):
    for base, own in ((BaseConv, layers.Conv1D), ("BaseConv", "Conv1D")):
        found = argument.chosen(model, {base: argument.low, own: argument.high})
        assert found["wide"] == argument.chosen(model, {own: argument.high})["wide"]
        assert found["wide"] != found["stem"]


@each([a for a in MAPPINGS if len(a.kinds) == 2])
def test_a_name_goes_before_a_type(argument, model):
    found = argument.chosen(model, {BaseConv: argument.low, "wid.*": argument.high})
    assert found["wide"] != found["stem"]


def test_a_name_goes_before_a_type_in_quantization(model):
    config = tfc.QuantizationConfig(None, by_type={"BaseConv": W4}, by_name={"wid.*": W5})
    weights = quantized(model, config)
    assert weights["wide"] != weights["stem"]


@each(MAPPINGS + LISTS + ENTRANCES)
@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("*", ValueError, r"Received: '\*', which is no regular expression \(nothing to repeat"),
        ("hiddem", ValueError, r"Received: 'hiddem'\. Did you mean 'hidden'"),
        ("nothing", ValueError, r"Received: 'nothing'\. There are: \["),
        (layers.LSTM, ValueError, r"Received: <class '.*LSTM'>\. There are: \["),
        (3, TypeError, r"Received: 3 of type int"),
    ],
    ids=str,
)
def test_refused_keys(argument, key, error, message, model):
    if key in ("*", "hiddem") and "name" not in argument.kinds:
        error, message = ValueError, f"Received: {re.escape(repr(key))}"
    if key is layers.LSTM and "type" not in argument.kinds:
        error, message = TypeError, "Received: <class '.*LSTM'> of type type"
    with pytest.raises(error, match=rf"Expected every key of `{argument.name}` to .*{message}"):
        argument.chosen(model, {key: argument.low})


def test_layers_that_were_renamed_answer_to_the_names_that_the_user_gave():
    def branch(name):
        inner = keras.Input((8,))
        return keras.Model(inner, layers.Dense(8, name="dense")(inner), name=name)

    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Add()([branch("a")(inputs), branch("b")(inputs)]))
    for key, expected in (("a/dense", 1), ("dense", 2), ("Dense", 2)):
        assert len(ranks(model, {key: 1})) == expected
        assert len(num_clusters(model, {key: 4})) == expected
        assert len(pruner_layers(model, {key: None})) == expected
        kept = tfc.share_weights([model], tolerance=0.0, keep_apart=[key]).left_alone
        assert sum(reason == "kept apart, as asked" for reason in kept.values()) == expected
        if key != "Dense":
            plan = tfc.plan(model, tfc.QuantizationConfig(None, by_name={key: W4}))
            assert sum(bool(entry.weights) for entry in plan) == expected


def test_quantized_layers_answer_to_the_class_they_were():
    small = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="a")])
    quantized = tfc.quantize(small, calibration_data=np.eye(8, dtype="float32"))
    assert set(pruner_layers(quantized, {"Dense": None})) == {"a"}
    assert set(num_clusters(quantized, {layers.Dense: 4})) == {"a"}


def test_a_subclass_of_the_user_answers_to_its_base_class():
    own = keras.Sequential([keras.Input((8,)), WideDense(8, name="a"), layers.Dense(8, name="b")])
    assert set(pruner_layers(own, {"Dense": None})) == {"a", "b"}
    assert set(pruner_layers(own, {WideDense: None})) == {"a"}
    keys = {"Dense": 1, WideDense: 2}
    assert [look_up(keys, layer) for layer in own.layers] == [2, 1]
