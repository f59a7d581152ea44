"""`search` on a small trained classifier: budgets, drops, resuming, refusals."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.costs.costs import pack_codes
from tfcompress.analysis.search.knapsack import choose


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 20)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(20, 12))) @ rng.normal(size=(12, 4))
    y = y.argmax(-1)
    inputs = keras.Input((20,), name="features")
    h = layers.Dense(64, activation="relu", name="first")(inputs)
    h = layers.Dense(64, activation="relu", name="second")(h)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    model.fit(x[:2000], y[:2000], epochs=15, batch_size=64, verbose=0)
    return model, (x[:2000], y[:2000]), (x[2000:], y[2000:])


OPTIONS = ("int4", "sparsity=0.5", "channels=0.5")


def test_a_budget_of_bytes_is_met_by_the_file(trained, tmp_path):
    model, train, validation = trained
    found = tfc.search(
        model,
        train,
        validation,
        budget=tfc.Bytes(8000),
        epochs=1,
        options=OPTIONS,
        trials=1,
        path=tmp_path / "work",
        verbose=0,
    )
    report = tfc.export_tflite(found.model, tmp_path / "model.tflite")
    assert report.num_bytes == found.best.costs.num_bytes <= 8000
    # The prediction is that of the file: codes are counted as they are stored.
    assert abs(found.best.num_bytes_error) < 0.02
    assert all(abs(c.num_bytes_error) < 0.02 for c in found.candidates)
    # What was measured is what the file computes.
    runner = tfc.Runner(tmp_path / "model.tflite")
    predicted = next(iter(runner.predict(validation[0]).values())).argmax(-1)
    assert np.mean(predicted == validation[1]) == pytest.approx(found.best.metric)
    assert found.best.metric > 0.6
    losses = [point.loss for point in found.front]
    assert losses == sorted(losses, reverse=True)
    assert "chosen" in str(found)
    assert f"{found.best.divergence:.3g} with all options together" in str(found)
    continued(trained, tmp_path, found)


def continued(trained, tmp_path, found):
    """The same search again finds everything in its folder."""
    model, train, validation = trained
    arguments = {"budget": tfc.Bytes(8000), "epochs": 1, "options": OPTIONS, "trials": 1}
    before = json.loads((tmp_path / "work/search.json").read_text())
    again = tfc.search(model, train, validation, **arguments, path=tmp_path / "work", verbose=0)
    assert json.loads((tmp_path / "work/search.json").read_text()) == before
    assert again.table == found.table
    report = tfc.export_tflite(again.model, tmp_path / "again.tflite")
    assert report.num_bytes == found.best.costs.num_bytes
    with pytest.raises(ValueError, match="same search"):
        tfc.search(model, train, validation, **{**arguments, "epochs": 2}, path=tmp_path / "work")


def test_low_rank_is_chosen_and_its_file_is_the_predicted_one(trained, tmp_path):
    model, train, validation = trained
    found = tfc.search(
        model,
        train,
        validation,
        budget=[tfc.Macs(0.7), tfc.Bytes(8500)],
        epochs=2,
        options=("int4", "rank=0.5"),
        trials=1,
        path=tmp_path / "work",
        verbose=0,
    )
    assignment = found.best.point.assignment
    # `second` has 64 of 84 rows of multiplications; without it, 0.7 cannot be met.
    assert "second" in assignment.ranks
    assert tfc.count_macs(found.model) == found.best.costs.macs <= 0.7 * tfc.count_macs(model)
    assert found.best.costs.macs == found.best.point.costs.macs
    assert abs(found.best.num_bytes_error) < 0.02
    assert "low rank × 0.5" in str(found)
    report = tfc.export_tflite(found.model, tmp_path / "model.tflite", verify_data=train[0][:64])
    assert report.num_bytes == found.best.costs.num_bytes <= 8500
    assert report.agreement >= 0.99
    names = [layer.name for layer in report.layers]
    assert {"second_in", "second"} <= set(names)
    assert report.recipe == found.recipe.to_dict()
    # The recipe gives the same model from the float model again.
    again = found.recipe.run(model, train, verbose=0)
    assert tfc.count_macs(again) == found.best.costs.macs
    outputs = [m.predict(validation[0], verbose=0).argmax(-1) for m in (again, found.model)]
    assert np.mean(outputs[0] == outputs[1]) > 0.97


def test_packed_convolutions_meet_a_budget_that_others_do_not(tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 8, 8, 4)).astype("float32")
    y = (x.mean((1, 2)) @ rng.normal(size=(4, 3))).argmax(-1)
    image = keras.Input((8, 8, 4), name="image")
    h = layers.Conv2D(48, 3, padding="same", activation="relu", name="first")(image)
    h = layers.Conv2D(48, 3, padding="same", activation="relu", name="second")(h)
    h = layers.GlobalAveragePooling2D()(h)
    model = keras.Model(image, layers.Dense(3, name="logits")(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x, y, epochs=2, verbose=0)

    def run(**options):
        train, validation = (x[:384], y[:384]), (x[384:], y[384:])
        options = {"budget": tfc.Bytes(19_000), "options": ["int4", "int2"], **options}
        return tfc.search(model, train, validation, epochs=1, trials=1, verbose=0, **options)

    with pytest.raises(ValueError, match="smallest that the options reach"):
        run()
    found = run(packed=True, path=tmp_path / "work")
    # With no other option: the model knows that its kernels are packed.
    report = tfc.export_tflite(found.model, tmp_path / "model.tflite", verify_data=x[:64])
    assert report.num_bytes == found.best.costs.num_bytes <= 19_000
    assert report.agreement == 1.0
    assert report.fully_delegated
    assert {row.name: row.stored for row in report.layers}["second"] == "int4"
    # What operators take is known about.
    assert abs(found.best.num_bytes_error) < 0.04
    assert "int4, packed" in str(found)
    again = found.recipe.run(model, (x[:384], y[:384]), verbose=0)
    second = tfc.export_tflite(again, tmp_path / "again.tflite", verify_samples=0)
    assert second.num_bytes == report.num_bytes


def test_the_smallest_that_holds_a_drop(trained, tmp_path):
    model, train, validation = trained
    found = tfc.search(
        model, train, validation, max_drop=0.05, epochs=1, options=OPTIONS, trials=2, verbose=0
    )
    assert found.best.drop.holds(0.05)
    smaller = [c for c in found.candidates if c.costs.gzip_bytes < found.best.costs.gzip_bytes]
    assert not any(c.drop.holds(0.05) for c in smaller)
    with pytest.raises(ValueError, match="smallest that the options reach"):
        tfc.search(model, train, validation, budget=tfc.Bytes(100), options=["int4"], verbose=0)


def test_wrong_arguments(trained):
    model, train, validation = trained
    with pytest.raises(ValueError, match="same object"):
        tfc.search(model, train, train)
    with pytest.raises(TypeError, match=r"tfc\.Bytes"):
        tfc.search(model, train, validation, budget=40_000)
    with pytest.raises(ValueError, match="Expected labels"):
        tfc.search(model, train, validation[0])
    with pytest.raises(ValueError, match="max_drop"):
        tfc.search(model, train, validation, max_drop=-0.1)
    with pytest.raises(ValueError, match="positive"):
        tfc.Bytes(0)


def test_the_knapsack_is_that_of_all_combinations():
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = [rng.random(3) for _ in range(4)]
        costs = [[rng.random(3) - 0.3 for _ in range(4)] for _ in range(2)]
        budgets = rng.random(2) * 1.5
        best = np.inf
        for index in np.ndindex(3, 3, 3, 3):
            spent = [sum(row[i][j] for i, j in enumerate(index)) for row in costs]
            if all(s <= b for s, b in zip(spent, budgets, strict=True)):
                best = min(best, sum(losses[i][j] for i, j in enumerate(index)))
        chosen = choose(losses, costs, budgets)
        if chosen is None:
            assert best == np.inf
        else:
            assert sum(losses[i][j] for i, j in enumerate(chosen)) == pytest.approx(best, abs=1e-5)


def test_codes_are_packed_from_the_low_end():
    assert pack_codes(np.array([1, -1, 7]), 4) == bytes([0xF1, 0x07])
    assert pack_codes(np.array([1, -1, 0, 1, -2]), 2) == bytes([0b01001101, 0b10])
    assert pack_codes(np.array([-3]), 8) == bytes([253])


def test_budgets_are_shares_or_numbers():
    origin = Costs(1000, 900, 2e6, 5e4, 4096, 1.5)
    assert tfc.Macs(0.5).limit_for(origin) == 1e6
    assert tfc.Macs(300_000).limit_for(origin) == 300_000
    assert tfc.Parameters(0.1).limit_for(origin) == 5e3
    assert [b.of(origin) for b in (tfc.Bytes(1), tfc.Bytes(1, gzip=True), tfc.Macs(1))] == [
        1000,
        900,
        2e6,
    ]
    assert [b.of(origin) for b in (tfc.Latency(1), tfc.PeakMemory(1))] == [1.5, 4096]
