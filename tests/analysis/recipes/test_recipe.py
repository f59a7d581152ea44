"""Recipes: round trips, messages that name key and line, and what following one gives."""

import importlib.util
import itertools
import json
import re

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.recipes import stages as run
from tfcompress.analysis.recipes.lines import parse_json
from tfcompress.model.kernels import compressible_kernels

STAGES = [
    {"shrink": {"channels": {"first": 0.5}}},
    {"prune": {"sparsity": {"second": 0.5}}},
    {"quantize": {"default": "int8", "layers": {"second": "int4", "logits": None}}},
    {"distill": {"temperature": 2.0}},
    {"train": {"epochs": 1, "learning_rate": 0.001, "batch_size": 32, "seed": 1}},
]
WHOLE = tfc.Recipe(
    STAGES,
    name="small",
    data="digits",
    metric="accuracy",
    max_drop=0.01,
    budgets=[tfc.Bytes(4000, gzip=True), tfc.Macs(0.5)],
)


def test_budgets_keep_all_that_they_are_made_of(tmp_path):
    budgets = [
        tfc.Latency(1.5, table={"CONV_2D": 2.0, "ADD": 0.0}),
        tfc.Latency(2.0),
        tfc.Instructions(0.5, "cortex-a53"),
        tfc.PeakMemory(64_000),
        tfc.Parameters(0.5),
    ]
    recipe = tfc.Recipe([{"quantize": {}}], budgets=budgets)
    recipe.save(tmp_path / "recipe.json")
    assert tfc.Recipe.load(tmp_path / "recipe.json").budgets == tuple(budgets)
    values = recipe.to_dict()
    values["budgets"][0]["Latency"]["table"]["ADD"] = "free"
    with pytest.raises(tfc.RecipeError, match="for the operator 'ADD'"):
        tfc.Recipe.from_dict(values)


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_recipe_is_the_same_after_a_file(tmp_path, ending):
    path = tmp_path / f"recipe{ending}"
    if ending == ".yaml" and importlib.util.find_spec("yaml") is None:
        with pytest.raises(ValueError, match="PyYAML"):
            WHOLE.save(path)
        path.write_text("stages: []")
        with pytest.raises(ValueError, match="PyYAML"):
            tfc.Recipe.load(path)
        return
    WHOLE.save(path)
    assert tfc.Recipe.load(path) == WHOLE == tfc.Recipe.from_dict(WHOLE.to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["stages"][2]["quantize"].update(bits=4), r"line \d+: Unknown key 'bits'"),
        (lambda r: r.update(max_dropp=1), r"Unknown key 'max_dropp': did you mean 'max_drop'\?"),
        (lambda r: r["stages"][4]["train"].update(epochs=-1), "Expected 'epochs' to be a whole"),
        (lambda r: r["stages"][2]["quantize"]["layers"].update(second="int7"), "'second': null"),
        (lambda r: r["stages"].insert(0, {"quantise": {}}), "did you mean 'quantize'"),
        (lambda r: r["stages"].reverse(), "before 'quantize'|in the order"),
        (lambda r: r["budgets"][0]["Bytes"].update(limit=0), "Expected 'limit' to be a number"),
        (lambda r: r.pop("stages"), "Expected the key 'stages'"),
        (lambda r: r["stages"][4]["train"].update(optimizer="Adamm"), "did you mean 'Adam'"),
        (
            lambda r: r["stages"][4]["train"].update(optimizer={"SGD": {"momentun": 1}}),
            r"settings among .*momentum.*not 'momentun'",
        ),
        (
            lambda r: r["stages"][4]["train"].update(callbacks=[{"EarlyStop": {}}]),
            "did you mean 'EarlyStopping'",
        ),
        (
            lambda r: r["stages"][4]["train"].update(learning_rate_schedule="step"),
            "one of cosine, constant",
        ),
        (
            lambda r: r["stages"][0]["shrink"].update(target_macs=0.5),
            "one of 'channels', 'target_macs' in 'shrink'. Received: 'channels' and 'target_macs'",
        ),
        (
            lambda r: r["stages"][0]["shrink"].update(ranking="uniform"),
            "'ranking' with 'target_macs'",
        ),
        (lambda r: r["stages"][0]["shrink"].clear(), "in 'shrink'. Received: no such key"),
        (lambda r: r["stages"][1]["prune"].clear(), "Expected 'sparsity' in 'prune'. Received: no"),
        (lambda r: r["stages"][1]["prune"].update(sparsity=1.0), "'sparsity' .* below 1"),
        (
            lambda r: r["stages"].insert(1, {"factorize": {"methods": ["svd"]}}),
            "'ranks', 'energy', 'target_macs' in 'factorize'. Received: no such key",
        ),
        (
            lambda r: r["stages"].insert(1, {"factorize": {"ranks": 4, "energy": 0.5}}),
            "Received: 'ranks' and 'energy'",
        ),
        (
            lambda r: r["stages"][3]["distill"].update(labels=0, weight=0),
            "Expected 'weight' or 'labels' above 0 in 'distill'",
        ),
        (
            lambda r: r["stages"].insert(2, {"regularize": {}}),
            "Expected 'l1' or 'l2' above 0 in 'regularize'",
        ),
        (
            lambda r: r["stages"].extend([{"quantize": {}}, {"train": {}}]),
            "'quantize' after 'quantize'",
        ),
        (lambda r: r["budgets"][0]["Bytes"].clear(), "Expected 'limit' in 'Bytes'"),
        (
            lambda r: r["budgets"].append({"Latency": {"limit": 0}}),
            "'limit' to be a number above 0. Received: 0",
        ),
        (
            lambda r: r["budgets"].append({"Latency": {"limit": 1, "table": {}}}),
            "Expected 'table' to be null, or operators",
        ),
        (
            lambda r: r["stages"][4]["train"].update(learning_rate="1e-3"),
            r"a number, 0 or more \(in YAML write 1.0e-3\). Received: '1e-3'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, change, message):
    values = WHOLE.to_dict()
    change(values)
    text = json.dumps(values, indent=1)
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(tfc.RecipeError, match=message) as error:
        tfc.Recipe.load(path)
    if "line " in str(error.value):
        number = int(str(error.value).partition("line ")[2].partition(":")[0])
        line = text.splitlines()[number - 1]
        # The line holds the key that the message is about.
        key = line.strip().partition(":")[0].strip('"')
        assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": None}, "Expected 'stages' to be a list. Received: None"),
        ({"stages": {"quantize": {}}}, "Expected 'stages' to be a list"),
        ({"stages": [{"quantize": {"default": tfc.Scheme()}}]}, "Expected 'default' to be null"),
        (
            {"stages": [{"train": {"callbacks": [{"EarlyStopping": {"monitor": object()}}]}}]},
            "a 'monitor' that JSON has.*not object",
        ),
    ],
)
def test_what_no_file_could_hold_is_refused(arguments, message):
    with pytest.raises(tfc.RecipeError, match=message):
        tfc.Recipe(**arguments)


def test_numbers_of_numpy_are_numbers(tmp_path):
    stages = [
        {"prune": {"sparsity": {"first": np.float32(0.5)}}},
        {"train": {"epochs": np.int64(2), "optimizer": {"SGD": {"momentum": np.float64(0.9)}}}},
    ]
    recipe = tfc.Recipe(stages, max_drop=np.float64(0.01), calibration_samples=np.int32(8))
    plain = tfc.Recipe(
        [
            {"prune": {"sparsity": {"first": 0.5}}},
            {"train": {"epochs": 2, "optimizer": {"SGD": {"momentum": 0.9}}}},
        ],
        max_drop=0.01,
        calibration_samples=8,
    )
    assert recipe == plain
    recipe.save(tmp_path / "recipe.json")
    assert tfc.Recipe.load(tmp_path / "recipe.json") == plain
    assert tfc.Recipe(stages, budgets=tfc.Bytes(4000)).budgets == (tfc.Bytes(4000),)


def test_lines_of_json():
    text = '{\n "a": [\n  {"b": 1},\n\n  {"c": "x: \\"y\\""}\n ],\n "d": {"e": [1, 2]}\n}'
    values, lines = parse_json(text)
    assert values == json.loads(text)
    assert lines["a",] == 2
    assert lines["a", 0, "b"] == 3
    assert lines["a", 1, "c"] == 5
    assert lines["d", "e"] == 7


def test_following_a_recipe(tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype("float32")
    y = (x @ rng.normal(size=(12, 3))).argmax(-1)
    inputs = keras.Input((12,), name="features")
    h = layers.Dense(32, activation="relu", name="first")(inputs)
    h = layers.Dense(32, activation="relu", name="second")(h)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, epochs=8, verbose=0)
    before = [w.copy() for w in model.get_weights()]
    small = WHOLE.run(model, (x, y), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    report = tfc.export_tflite(small, tmp_path / "model.tflite", verify_data=x[:64])
    found = {layer.name: layer for layer in report.layers}
    assert found["first"].num_weights == 12 * 16
    assert found["second"].num_bits == 4
    assert found["second"].pruned == 16 * 32 // 2
    assert found["logits"].num_bits == 32
    runner = tfc.Runner(tmp_path / "model.tflite")
    assert np.mean(next(iter(runner.predict(x).values())).argmax(-1) == y) > 0.8
    # The report holds the recipe, also of a model that was saved in between.
    assert tfc.Recipe.from_dict(report.recipe) == WHOLE
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert tfc.Recipe.from_dict(loaded.recipe) == WHOLE
    assert json.loads(json.dumps(report.to_dict()["recipe"])) == WHOLE.to_dict()
    # The same recipe gives the same model.
    again = WHOLE.run(model, (x, y), verbose=0)
    np.testing.assert_allclose(again.predict(x, verbose=0), small.predict(x, verbose=0), atol=1e-4)
    wrong = tfc.Recipe([{"shrink": {"channels": {"third": 0.5}}}])
    with pytest.raises(ValueError, match="there are"):
        wrong.run(model, (x, y), verbose=0)


def test_optimizer_and_callbacks_are_taken_by_name():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    train = {
        "epochs": 3,
        "learning_rate": 0.05,
        "learning_rate_schedule": "constant",
        "optimizer": {"SGD": {"momentum": 0.9, "clipnorm": 1.0}},
        "callbacks": [
            "TerminateOnNaN",
            # After the first epoch no loss is better by so much.
            {"EarlyStopping": {"monitor": "loss", "min_delta": 1e6, "patience": 1}},
            {"QuantizationSchedule": {"start_step": 0, "freeze_ranges_step": 2}},
        ],
    }
    recipe = tfc.Recipe([{"quantize": {}}, {"train": train}], calibration_samples=32)
    assert tfc.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    made = recipe.run(model, (x, rng.integers(0, 2, 96)), verbose=0)
    assert isinstance(made.optimizer, keras.optimizers.SGD)
    assert made.optimizer.momentum == 0.9
    assert float(made.optimizer.learning_rate) == pytest.approx(0.05)
    assert len(made.history.history["loss"]) == 2
    y = rng.integers(0, 2, 96)
    schedule = {"class_name": "ConstantSparsity", "config": {"target_sparsity": 0.5}}
    pruning = {"epochs": 1, "callbacks": [{"Pruning": {"schedule": schedule}}]}
    made = tfc.Recipe([{"quantize": {}}, {"train": pruning}]).run(model, (x, y), verbose=0)
    assert np.mean(made.layers[2].kernel.numpy() == 0) == 0.5
    for callback, message in (
        ({"GuidedBits": {"monitor": "loss", "max_drop": -1}}, "max_drop"),
        ({"Pruning": {"schedule": {"class_name": "Popen", "config": {}}}}, "Received: 'Popen'"),
    ):
        wrong = tfc.Recipe([{"train": {"callbacks": [callback]}}])
        with pytest.raises(ValueError, match=message):
            wrong.run(model, (x, y), verbose=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"stages": [], "max_drop": 1e999}', "Expected 'max_drop' to be a number"),
        ('{"stages": [{"quantize": {"default": []}}]}', "Expected 'default' to be null"),
        ('{"stages": [{"train": {"epochs": 2, "epochs": 3}}]}', "'epochs' stands twice"),
    ],
)
def test_a_hostile_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        tfc.Recipe.load(path)
    assert len(str(error.value)) < 1000


def test_a_yaml_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("stages:\n  - train:\n      epochs: 2\n      epochs: 3\n")
    with pytest.raises(ValueError, match=r"'epochs' stands twice.*line 4"):
        tfc.Recipe.load(path)


def test_yaml_without_aliases_by_which_few_lines_become_billions(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "recipe.yaml"
    names = "abcdefghij"
    pairs = itertools.pairwise(names)
    lines = ["a: &a [x, x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairs)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="aliases"):
        tfc.Recipe.load(path)


def test_the_ranking_of_widths_is_that_of_the_recipe():
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(64, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(3),
        ]
    )
    # By one ranking most goes where weights are small.
    model.layers[0].kernel.assign(rng.normal(0, 1e-3, (16, 64)))
    model.layers[1].kernel.assign(np.outer(np.ones(64), np.geomspace(1e-3, 1, 64)))
    train = (rng.normal(size=(8, 16)).astype("float32"), np.zeros(8, int))

    def units(ranking):
        recipe = tfc.Recipe([{"shrink": {"target_macs": 0.5, "ranking": ranking}}])
        small = recipe.run(model, train, verbose=0)
        return [layer.units for layer in small.layers if hasattr(layer, "units")][:-1]

    # Widths are multiples of 8.
    assert np.ptp(units("uniform")) <= 8
    assert np.ptp(units("global")) > 8
    with pytest.raises(ValueError, match="'ranking'"):
        tfc.Recipe([{"shrink": {"target_macs": 0.5, "ranking": "other"}}])


def no_training(*args, **options):
    raise AssertionError("a training came first")


def zeros(model):
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    return [round(float(np.mean(np.asarray(kernel) == 0)), 2) for kernel in kernels]


@pytest.fixture
def small():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((10,)), layers.Dense(20, "relu", name="first"), layers.Dense(5, name="last")]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (rng.normal(size=(96, 10)).astype("float32"), rng.integers(0, 5, 96))


TRAIN = {"train": {"epochs": 2, "batch_size": 8}}


@pytest.mark.parametrize(
    "stages",
    [
        [{"prune": {"sparsity": 0.8}}, TRAIN],
        [{"prune": {"sparsity": {"first": 0.8, "last": 0.5}}}, TRAIN, TRAIN],
        [{"prune": {"sparsity": 0.8, "end_step": 12}}, TRAIN, TRAIN],
        [{"prune": {"sparsity": 0.8}}, TRAIN, {"quantize": {}}, TRAIN],
        [{"prune": {"sparsity": 0.8, "end_step": 12}}, {"quantize": {}}, TRAIN, TRAIN],
        [{"prune": {"sparsity": 0.8}}, {"quantize": {"layers": {"first": None}}}, TRAIN],
        [{"quantize": {}}, TRAIN, {"prune": {"sparsity": 0.8}}, TRAIN],
        [
            {"prune": {"sparsity": 0.4}},
            {"quantize": {}},
            TRAIN,
            {"prune": {"sparsity": 0.8}},
            TRAIN,
        ],
    ],
)
def test_zeros_stay_in_every_training(small, stages, capfd):
    model, train = small
    before = model.get_weights()
    found = tfc.Recipe(stages).run(model, train, verbose=0)
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    shares = [stage["prune"]["sparsity"] for stage in stages if "prune" in stage][-1]
    assert zeros(found) == [0.8, 0.5 if isinstance(shares, dict) else 0.8]
    assert not np.array_equal(found.get_layer("first").kernel, model.layers[0].kernel)
    assert "Pruning" not in capfd.readouterr().out


@pytest.mark.parametrize("first", [{}, {"end_step": 12}])
@pytest.mark.parametrize("second", [{}, {"end_step": 12}])
def test_zeros_of_one_pruning_stay_in_the_training_behind_another(small, first, second):
    model, train = small
    stages = [
        {"prune": {"sparsity": {"first": 0.8}, **first}},
        TRAIN,
        {"prune": {"sparsity": {"last": 0.5}, **second}},
        TRAIN,
    ]
    assert zeros(tfc.Recipe(stages).run(model, train, verbose=0)) == [0.8, 0.5]


def test_a_quantized_model_that_is_pruned_keeps_its_plan(small, tmp_path):
    model, train = small
    stages = [{"quantize": {}}, TRAIN, {"prune": {"sparsity": 0.5}}]
    found = tfc.Recipe(stages).run(model, train, verbose=0)
    assert zeros(found) == [0.5, 0.5]
    assert found.plan is not None
    report = tfc.export_tflite(found, tmp_path / "model.tflite")
    assert [layer.pruned for layer in report.layers] == [100, 50]


def test_zeros_of_clusters_stay(small):
    model, train = small
    stages = [{"prune": {"sparsity": 0.8, "end_step": 12}}, {"cluster": {}}, TRAIN, TRAIN]
    found = tfc.Recipe(stages).run(model, train, verbose=0)
    kernels = [la.effective_weights()["kernel"] for la in found.layers if hasattr(la, "kernel")]
    assert [round(float(np.mean(np.asarray(k) == 0)), 2) for k in kernels] == [0.8, 0.8]


@pytest.fixture
def wrapped():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input((4, 6), name="x")
    h = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    h = layers.Bidirectional(layers.LSTM(4, name="steps"), name="both")(h)
    model = keras.Model(inputs, layers.Dense(3, name="scores")(h))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (rng.normal(size=(32, 4, 6)).astype("float32"), rng.integers(0, 3, 32))


@pytest.mark.parametrize("gradual", [{}, {"end_step": 6}])
def test_kernels_inside_of_layers_are_pruned_with_them(wrapped, gradual):
    model, train = wrapped

    def zeros_of(sparsity):
        recipe = tfc.Recipe([{"prune": {"sparsity": sparsity, **gradual}}, TRAIN])
        kernels = compressible_kernels(recipe.run(model, train, verbose=0))
        values = [np.asarray(kernel.variable) for kernel in kernels]
        return [round(float(np.mean(value == 0)), 1) for value in values]

    # Four of the attention, two of each direction, one of the scores.
    assert zeros_of(0.5) == [0.5] * 9
    assert zeros_of({"attention": 0.5}) == [0.5] * 4 + [0.0] * 5
    assert zeros_of({"both": 0.5}) == [0.0] * 4 + [0.5] * 4 + [0.0]


GRADUAL = {"prune": {"sparsity": 0.5, "end_step": 6}}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([GRADUAL, {"quantize": {}}, TRAIN], "'attention' (a later stage takes it apart)"),
        (
            [TRAIN, GRADUAL, {"quantize": {"layers": {"scores": "binary"}}}, TRAIN],
            "'scores' (its weights are quantized without a level 0)",
        ),
        (
            [{"quantize": {"layers": {"scores": "binary"}}}, TRAIN, {"prune": {"sparsity": 0.5}}],
            "Received: ['scores'], which are quantized without a level 0",
        ),
        ([{"cluster": {}}, TRAIN, {"prune": {"sparsity": 0.5}}], "which are clustered"),
        (
            [{"prune": {"sparsity": 0.5}}, TRAIN, {"factorize": {"ranks": {"scores": 1}}}],
            "Received: ['scores']. Put 'factorize' before 'prune'",
        ),
        ([GRADUAL, TRAIN, {"factorize": {"ranks": {"scores": 1}}}], "Received: ['scores']. Put"),
    ],
)
def test_zeros_that_would_not_hold_are_refused_before_a_training(
    wrapped, monkeypatch, stages, message
):
    model, train = wrapped
    monkeypatch.setattr(run, "finetune", no_training)
    with pytest.raises(ValueError, match=re.escape(message)):
        tfc.Recipe(stages).run(model, train, verbose=0)


def test_gradual_pruning_of_a_frozen_layer_is_refused(small):
    model, train = small
    model.get_layer("first").trainable = False
    with pytest.raises(ValueError, match=re.escape("'first' (it is frozen)")):
        tfc.Recipe([GRADUAL, TRAIN]).run(model, train, verbose=0)
    # At once it is no matter: what does not train keeps its zeros.
    found = tfc.Recipe([{"prune": {"sparsity": 0.5}}, TRAIN]).run(model, train, verbose=0)
    assert zeros(found) == [0.5, 0.5]


def test_gradual_pruning_is_gradual(small, monkeypatch):
    model, train = small
    seen = []

    class WatchZeros(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(zeros(self.model)[0])

    # A recipe takes callbacks of Keras by name.
    monkeypatch.setattr(keras.callbacks, "WatchZeros", WatchZeros, raising=False)
    stage = {"prune": {"sparsity": 0.8, "begin_step": 2, "end_step": 22}}
    training = {"train": {"epochs": 2, "batch_size": 8, "callbacks": ["WatchZeros"]}}
    tfc.Recipe([stage, training]).run(model, train, verbose=0)
    assert len(set(seen)) > 8
    assert seen == sorted(seen)
    late = {"prune": {"sparsity": 0.8, "end_step": 5000}}
    with pytest.raises(ValueError, match=r"24 steps\. Received: 5000"):
        tfc.Recipe([late, TRAIN]).run(model, train, verbose=0)


def test_layers_of_nested_models_go_by_the_names_of_a_plan():
    keras.utils.set_random_seed(0)
    left, right = (
        keras.Sequential([keras.Input((10,)), layers.Dense(10, name="inner")], name=name)
        for name in ("left", "right")
    )
    inputs = keras.Input((10,), name="x")
    model = keras.Model(inputs, layers.Dense(3, name="scores")(right(left(inputs))))
    x = np.random.default_rng(0).normal(size=(32, 10)).astype("float32")
    stages = [
        {"prune": {"sparsity": {"right/inner": 0.5}}},
        {"quantize": {"layers": {"left/inner": "int4", "right/.*": None}}},
    ]
    found = tfc.Recipe(stages).run(model, x, verbose=0)
    weights = {entry.name.rpartition("/")[2]: entry.weights for entry in found.plan}
    assert "int4 per channel" in weights.values()
    kernels = [np.asarray(la.kernel) for la in found.layers if hasattr(la, "kernel")]
    assert [round(float(np.mean(kernel == 0)), 2) for kernel in kernels] == [0.0, 0.5, 0.0]
    assert len(found.plan.float_layers) == 1
    with pytest.raises(ValueError, match=r"'right/iner'.*Did you mean 'right/inner'"):
        tfc.Recipe([{"prune": {"sparsity": {"right/iner": 0.5}}}]).run(model, x, verbose=0)


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ([{"quantize": {"layers": {"lost": None}}}], "key of 'layers' of 'quantize'.*'lost'"),
        ([{"prune": {"sparsity": {"lost": 0.5}}}], r"Received: \['lost'\]. Did you mean 'last'"),
        ([{"prune": {"sparsity": 0.5, "end_step": 900}}, TRAIN], "Received: 900"),
    ],
)
def test_later_stages_are_checked_before_the_first_training(small, monkeypatch, late, message):
    model, train = small

    monkeypatch.setattr(run, "finetune", no_training)
    with pytest.raises(ValueError, match=message):
        tfc.Recipe([TRAIN, *late]).run(model, train, verbose=0)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"prune": {"sparsity": 0.8, "end_step": 10}}], "'train' stage behind 'prune'"),
        ([TRAIN, {"regularize": {"l1": 0.1}}], "'train' stage behind 'regularize'"),
        ([{"distill": {}}], "'train' stage behind 'distill'"),
        ([{"prune": {"sparsity": 0.8, "begin_step": 1}}, TRAIN], "'begin_step' with 'end_step'"),
        (
            [{"prune": {"sparsity": 0.8, "begin_step": 9, "end_step": 9}}, TRAIN],
            "'end_step' after 'begin_step', which is 9",
        ),
        ([{"train": {"callbacks": [{"EarlyStopping": {"patience": 2}}]}}], "not 'val_loss'"),
    ],
)
def test_what_could_not_act_is_refused(stages, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tfc.Recipe(stages)
