"""Layers shared by models: which ones, what is kept apart, and how often they are stored."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.export.tflite import export_tflite
from tfcompress.quantization.quantize import quantize
from tfcompress.sharing import cluster, share_weights


def copy_of(model, noise=0.0, name=None):
    random = np.random.default_rng(0)
    copy = keras.models.clone_model(model)
    copy.set_weights(
        [
            w + np.float32(noise * np.std(w)) * random.normal(size=w.shape).astype(np.float32)
            for w in model.get_weights()
        ]
    )
    if name is not None:
        copy.name = name
    return copy


def test_equal_layers_become_one_and_predictions_stay(trained, digits):
    x = digits[1][0][:40]
    other = copy_of(trained, name="other")
    # Another head, and another batch norm.
    other.get_layer("logits").kernel.assign(other.get_layer("logits").kernel * 0.3 + 1.0)
    other.get_layer("norm").beta.assign(other.get_layer("norm").beta + 0.5)
    expected = [m.predict(x, verbose=0) for m in (trained, other)]
    shared = share_weights([trained, other], tolerance=1e-3)
    first, second = shared.models
    assert [g.layer for g in shared.groups] == ["conv1", "conv2"]
    for name in ("conv1", "conv2"):
        assert first.get_layer(name) is second.get_layer(name)
        assert first.get_layer(name) is not trained.get_layer(name)
    assert first.get_layer("norm") is not second.get_layer("norm")
    assert set(shared.left_alone) == {(0, "logits"), (1, "logits")}
    for model, outputs in zip(shared.models, expected, strict=True):
        np.testing.assert_allclose(model.predict(x, verbose=0), outputs, atol=1e-4)
    both = shared.joint.predict([x, x], verbose=0)
    for output, outputs in zip(both, expected, strict=True):
        np.testing.assert_allclose(output, outputs, atol=1e-4)
    summed, stored = shared.num_weights
    assert summed - stored == sum(g.weights for g in shared.groups) == 144 + 3456 + 24
    assert "conv2" in str(shared)


def test_tolerance_value_and_position(trained):
    noisy = copy_of(trained, noise=0.2)
    distances = {g.layer: g.distance for g in share_weights([trained, noisy], tolerance=1).groups}
    assert all(0.1 < d < 0.4 for d in distances.values())
    assert not share_weights([trained, noisy], tolerance=0.1).groups
    mean = share_weights([trained, noisy], tolerance=1).models[0].get_layer("conv2").kernel.numpy()
    first = share_weights([trained, noisy], tolerance=1, value="first").models[1]
    kernels = [m.get_layer("conv2").kernel.numpy() for m in (trained, noisy)]
    np.testing.assert_allclose(mean, (kernels[0] + kernels[1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(first.get_layer("conv2").kernel.numpy(), kernels[0])

    def deep(seed):
        keras.utils.set_random_seed(seed)
        stack = [layers.Dense(8, name=f"d{i}") for i in range(4)]
        return keras.Sequential([keras.Input((8,)), *stack], name="deep")

    # Unrelated kernels: those at the same depth find each other.
    found = share_weights([deep(0), deep(1)], tolerance=2.0)
    assert [g.members for g in found.groups] == [((0, f"d{i}"), (1, f"d{i}")) for i in range(4)]
    assert [m.name for m in found.models] == ["deep", "deep_2"]


def test_kernels_of_nothing_but_zeros_are_equal():
    models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(3)]
    for model in models[:2]:
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    (group,) = share_weights(models, tolerance=0).groups
    assert group.distance == 0
    assert [index for index, _ in group.members] == [0, 1]


def dense(name="m", bias=0.0, trainable=True, **options):
    keras.utils.set_random_seed(0)
    layer = layers.Dense(8, name="d", trainable=trainable, **options)
    model = keras.Sequential([keras.Input((6,)), layer], name=name)
    layer.kernel.assign(np.random.default_rng(0).normal(size=(6, 8)))
    layer.bias.assign(np.full(8, bias))
    return model


def test_equal_kernels_with_other_biases_are_not_one_layer():
    models = [dense(bias=-5.0), dense(bias=5.0)]
    apart = share_weights(models, tolerance=1.0)
    assert not apart.groups
    assert set(apart.left_alone) == {(0, "d"), (1, "d")}
    (group,) = share_weights(models, tolerance=2.0).groups
    assert group.distance > 1.0
    # Nor does a bias that they share make one layer of two kernels.
    models = [dense(bias=50.0), dense(bias=50.0)]
    models[1].get_layer("d").kernel.assign(-models[0].get_layer("d").kernel)
    assert not share_weights(models, tolerance=1.0).groups


@pytest.mark.parametrize("trainable", [(True, False), (False, True), (False, False)])
def test_a_shared_layer_trains_where_one_of_its_members_does(trainable):
    shared = share_weights([dense(trainable=t) for t in trainable], tolerance=0.0)
    for model in shared.models:
        assert model.get_layer("d").trainable is any(trainable)
        assert bool(model.trainable_weights) is any(trainable)


def test_how_the_weights_began_does_not_matter():
    def model(seed):
        start = keras.initializers.HeNormal(seed=seed)
        stack = [
            layers.Embedding(20, 6, embeddings_initializer=start, name="embed"),
            layers.SeparableConv1D(
                4, 3, depthwise_initializer=start, pointwise_initializer=start, name="separable"
            ),
            layers.GRU(3, recurrent_initializer=start, dropout=0.1, seed=seed, name="gru"),
        ]
        return keras.Sequential([keras.Input((8,)), *stack])

    first, second = model(1), model(2)
    second.set_weights(first.get_weights())
    shared = share_weights([first, second], tolerance=0.0)
    assert [g.layer for g in shared.groups] == ["embed", "separable", "gru"]


def test_a_compressed_layer_is_found_in_a_nested_model():
    inner = quantize(dense())
    inputs = keras.Input((6,))
    outer = keras.Model(inputs, layers.Dense(3)(inner(inputs)))
    with pytest.raises(ValueError, match=r"before cluster.*\['d'\]"):
        share_weights([outer, dense()], tolerance=1.0)


def test_outputs_of_the_joint_model_have_names_of_their_own():
    def model(name):
        inputs = keras.Input((4,), name="x")
        heads = [layers.Dense(2, name=head)(inputs) for head in ("p", "q")]
        return keras.Model(inputs, heads, name=name)

    joint = share_weights([model("one"), model("two")], tolerance=2.0).joint
    assert joint.output_names == ["one_p", "one_q", "two_p", "two_q"]
    joint.compile("sgd", dict.fromkeys(joint.output_names, "mse"))
    x, y = np.ones((2, 4)), [np.ones((2, 2))] * 4
    logs = joint.evaluate([x, x], y, return_dict=True, verbose=0)
    assert {f"{name}_loss" for name in joint.output_names} <= set(logs)


def test_within_one_model():
    inputs = keras.Input((8,))
    x = inputs
    for i in range(3):
        x = layers.Dense(8, activation="relu", name=f"d{i}")(x)
    model = keras.Model(inputs, layers.Dense(8, name="linear")(x))
    for i in (1, 2):
        model.get_layer(f"d{i}").set_weights(model.get_layer("d0").get_weights())
    expected = model.predict(np.eye(8), verbose=0)
    shared = share_weights([model], tolerance=0.0)
    assert [len(g.members) for g in shared.groups] == [3]
    assert shared.models[0].count_params() == 2 * 72
    np.testing.assert_allclose(shared.models[0].predict(np.eye(8), verbose=0), expected, atol=1e-6)


def test_finetuned_together_and_stored_once(trained, digits, compiled, accuracy, tmp_path):
    (x, y), test = digits
    # The other model names the digits backwards: the same features, another task.
    keras.utils.set_random_seed(1)
    other = keras.models.clone_model(trained)
    compiled(other, 5e-3).fit(x, 9 - y, batch_size=64, epochs=4, verbose=0)
    options = {"tolerance": 2.0, "value": "first", "keep_apart": "logits"}
    shared = share_weights([trained, other], **options)
    assert {"logits" in name for _, name in shared.left_alone} == {True}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    shared.joint.compile(keras.optimizers.Adam(3e-3), [loss, loss])
    shared.joint.fit([x, x], [y, 9 - y], batch_size=64, epochs=2, verbose=0)
    first, second = shared.models
    assert accuracy(first, test) > 0.85
    assert accuracy(second, (test[0], 9 - test[1])) > 0.85
    quantized = {
        "digits": quantize(cluster(first, 16), calibration_data=x[:64]),
        "backwards": quantize(cluster(second, 16), calibration_data=x[:64]),
    }
    verify = dict.fromkeys(quantized, x[:64])
    path = tmp_path / "both.tflite"
    report = export_tflite(quantized, path, verify_data=verify)
    alone = export_tflite(quantized["digits"], tmp_path / "one.tflite", verify_data=x[:64])
    assert min(p.equal for outputs in report.parity.values() for p in outputs) > 0.9
    # All of the second kernel, 3×3×16×24 codes, is stored once.
    assert 2 * alone.num_bytes - report.num_bytes > 3456
    assert report.patched.count("conv2") == 2
    summed = sum(report.signature_num_bytes.values())
    assert set(report.signature_num_bytes) == set(quantized)
    assert summed - report.constant_num_bytes > 3456
    assert f"{report.constant_num_bytes:,}" in str(report)
    assert f"{summed:,}" in str(report)
    assert "stored" not in str(alone)


def test_mistakes(trained):
    with pytest.raises(ValueError, match="empty"):
        share_weights([], tolerance=1)
    with pytest.raises(ValueError, match="twice"):
        share_weights([trained, trained], tolerance=1)
    with pytest.raises(ValueError, match="tolerance"):
        share_weights([trained], tolerance=-1)
    with pytest.raises(ValueError, match="first"):
        share_weights([trained], tolerance=1, value="last")
    with pytest.raises(ValueError, match="logits"):
        share_weights([trained], tolerance=1, keep_apart=["logit"])
    with pytest.raises(ValueError, match="before cluster"):
        share_weights([trained, cluster(trained, 4)], tolerance=1)
    with pytest.raises(TypeError):
        share_weights(["model"], tolerance=1)
