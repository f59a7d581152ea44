"""`sensitivity` against changing weights by hand and predicting with the whole model."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.options.changes import round_activation

OPTIONS = ("int8", "int4", "sparsity=0.5", "channels=0.5", "rank=0.5")


def residual_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(16, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.Conv2D(16, 3, padding="same", name="second")(y)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def images(count=40):
    return np.random.default_rng(1).normal(size=(count, 8, 8, 3)).astype("float32")


def kl(reference, outputs):
    p, q = (np.exp(a - a.max(-1, keepdims=True)) for a in (reference, outputs))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.fixture(scope="module")
def measured():
    model = residual_net()
    before = [w.copy() for w in model.get_weights()]
    table = tfc.sensitivity(model, images(), options=OPTIONS, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    return model, table


def with_kernel(model, name, change):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernel = copy.get_layer(name).kernel
    kernel.assign(change(kernel.numpy()))
    return kl(model.predict(images(), verbose=0), copy.predict(images(), verbose=0))


def test_sparsity_is_that_of_pruned_kernels(measured):
    model, table = measured
    for name in ("first", "inner", "logits"):

        def prune(kernel):
            return np.where(np.abs(kernel) >= np.median(np.abs(kernel)), kernel, 0)

        assert table.row(name, "sparsity=0.5").divergence == pytest.approx(
            with_kernel(model, name, prune), rel=1e-3
        )


def test_four_bits_are_fifteen_codes_per_channel(measured):
    model, table = measured

    def four_bits(kernel):
        scale = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0) / 7
        return np.round(kernel / scale) * scale

    for name in ("inner", "second", "logits"):
        # The layer's input is on an int8 grid too, which costs far less.
        assert table.row(name, "int4").divergence == pytest.approx(
            with_kernel(model, name, four_bits), rel=0.2
        )


def test_activations_are_rounded_to_256_codes_of_their_range():
    x = np.abs(np.random.default_rng(0).normal(size=(64, 5))).astype("float32")
    step = x.max() / 255
    np.testing.assert_allclose(
        round_activation(tf.constant(x)), np.round(x / step) * step, atol=1e-6
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_measured_as_float32_is(policy):
    def net(dtype):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((12,), name="x")
        h = layers.Dense(16, "relu", name="hidden", dtype=dtype)(inputs)
        return keras.Model(inputs, layers.Dense(4, name="logits", dtype=dtype)(h))

    x = np.random.default_rng(0).normal(size=(32, 12)).astype("float32")
    half, whole = (
        tfc.sensitivity(net(p), x, options=["int4", "channels=0.5"], verbose=0)
        for p in (policy, "float32")
    )
    assert len(half.rows) == len(whole.rows) == 3
    for row in whole:
        assert half.row(row.target, row.option).divergence == pytest.approx(row.divergence, rel=0.2)
    rounded = round_activation(tf.constant(x, keras.DTypePolicy(policy).compute_dtype))
    assert rounded.dtype.name == keras.DTypePolicy(policy).compute_dtype
    np.testing.assert_allclose(tf.cast(rounded, tf.float32), round_activation(x), atol=0.05)


def test_channels_that_go_together_are_one_row(measured):
    model, table = measured
    channels = [row.target for row in table if row.option == "channels=0.5"]
    assert sorted(channels) == ["first + second", "inner"]
    norms = np.abs(model.get_layer("inner").kernel.numpy()).sum((0, 1, 2))
    gone = np.argsort(norms)[:8]

    def without(kernel):
        kernel[:, :, gone] = 0
        return kernel

    assert table.row("inner", "channels=0.5").divergence == pytest.approx(
        with_kernel(model, "second", without), rel=1e-3
    )


def test_a_row_of_channels_names_the_share_that_stays():
    # 12 of 16 channels, of which both are the nearest multiple of 4.
    options = ("channels=0.875", "channels=0.75", "channels=0.99")
    table = tfc.sensitivity(residual_net(), images(8), options=options, verbose=0)
    found = sorted((row.target, row.option) for row in table)
    assert found == [("first + second", "channels=0.75"), ("inner", "channels=0.75")]


def test_fewer_bits_and_weights_cost_more(measured):
    _, table = measured
    for name in ("first", "inner", "second", "logits"):
        assert table.row(name, "int8").divergence < table.row(name, "int4").divergence
    assert [r.divergence for r in table] == sorted((r.divergence for r in table), reverse=True)
    assert "first + second" in str(table)


def test_rows_are_saved_and_continued(measured, tmp_path, monkeypatch):
    model, table = measured
    path = tmp_path / "rows.json"
    kept = tuple(row for row in table if row.target != "inner")
    dataclasses.replace(table, rows=kept).save(path)
    from tfcompress.analysis.sensitivity import sensitivity as module

    calls = []
    run = module._outputs_with
    monkeypatch.setattr(
        module, "_outputs_with", lambda c, x, p: (calls.append(x.target), run(c, x, p))[1]
    )
    again = tfc.sensitivity(model, images(), options=OPTIONS, path=path, verbose=0)
    assert set(calls) == {"inner"}
    assert again.to_rows() == table.to_rows() == tfc.Sensitivity.load(path).to_rows()
    # Rows of other options stay in the file, and out of the table.
    one = tfc.sensitivity(model, images(), options=OPTIONS[:1], path=path, verbose=0)
    assert {row.option for row in one} == {OPTIONS[0]}
    assert len(tfc.Sensitivity.load(path).rows) == len(table.rows)
    with pytest.raises(ValueError, match="rows of the same data"):
        tfc.sensitivity(model, images() + 1, options=OPTIONS, path=path, verbose=0)
    path.write_text(path.read_text().replace('"parameters": ', '"parameters": 1', 1))
    with pytest.raises(ValueError, match="does not fit its checksum"):
        tfc.Sensitivity.load(path)


def test_rows_are_those_of_the_same_names(tmp_path):
    def table(name):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        h = layers.Dense(8, activation="relu", name=name)(inputs)
        model = keras.Model(inputs, layers.Dense(3, name="logits")(h))
        x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
        path = tmp_path / "rows.json"
        return tfc.sensitivity(model, x, options=["int8"], path=path, verbose=0)

    assert table("hidden").to_rows() == table("hidden").to_rows()
    # The same model otherwise: its rows could not be found by their names.
    with pytest.raises(ValueError, match="rows of the same names of layers"):
        table("hidden_1")


def test_a_pre_screen_orders_what_is_not_measured(measured):
    model, table = measured
    part = tfc.sensitivity(model, images(), options=OPTIONS, max_measured=6, verbose=0)
    assert sum(row.measured for row in part) == 6
    assert len(part.rows) == len(table.rows)
    assert "~" in str(part)
    for row in part:
        if row.measured:
            assert row.divergence == table.row(row.target, row.option).divergence


def test_a_metric_and_its_drop():
    model, x = residual_net(), images()
    labels = model.predict(x, verbose=0).argmax(-1)
    table = tfc.sensitivity(
        model, (x, labels), options=["sparsity=0.8"], metric="accuracy", verbose=0
    )
    assert max(row.drop for row in table) > 0.02
    assert table.origin["baseline"] == "1"


def test_a_file_belongs_to_one_metric(tmp_path):
    model, x = residual_net(), images()
    labels = model.predict(x, verbose=0).argmax(-1)
    path = tmp_path / "rows.json"

    def measure(factor, mode="max"):
        return tfc.sensitivity(
            model,
            (x, labels),
            options=["sparsity=0.8"],
            metric=lambda y, p: factor * (p.argmax(-1) == y),
            mode=mode,
            path=path,
            verbose=0,
        )

    assert measure(1.0).to_rows() == measure(1.0).to_rows()
    for other in ({"factor": 2.0}, {"factor": 1.0, "mode": "min"}):
        with pytest.raises(ValueError, match="rows of the same code of the metric"):
            measure(**other)


def test_wrong_arguments():
    model, x = residual_net(), images(4)
    with pytest.raises(ValueError, match="Expected labels"):
        tfc.sensitivity(model, x, metric="accuracy")
    with pytest.raises(ValueError, match="Expected options such as"):
        tfc.sensitivity(model, x, options=["int7"])
    with pytest.raises(ValueError, match="one length"):
        tfc.sensitivity(model, (x, np.zeros(3)))
    with pytest.raises(ValueError, match="shape"):
        tfc.sensitivity(model, x[:, :4])
    plain = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    with pytest.raises(ValueError, match="layers that"):
        tfc.sensitivity(plain, np.ones((4, 4), "float32"), options=["sparsity=0.5"])


def test_nested_and_shared_layers_and_several_outputs():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, "relu", name="inside")], name="n")
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    shared = layers.Dense(6, name="shared")
    x, y = inner(shared(a)), inner(shared(b))
    outputs = [
        layers.Dense(1, "sigmoid", name="yes")(x),
        layers.Dense(3, "softmax", name="which")(layers.Add()([x, y])),
    ]
    model = keras.Model([a, b], outputs)
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(16, 6)).astype("float32") for name in "ab"}
    table = tfc.sensitivity(model, data, options=["int4", "sparsity=0.5"], verbose=0)
    assert {row.target for row in table} == {"shared", "n/inside", "yes", "which"}
    assert all(np.isfinite(row.divergence) and row.divergence > 0 for row in table)
