"""Layers and functions of a user's own, through every technique and into the file."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.export.runtime.runner import Runner
from tfcompress.model.compressed import COMPRESSED
from tfcompress.model.kernels import KERNELS
from tfcompress.model.macs import COUNTERS
from tfcompress.pruning.structure import Role
from tfcompress.quantization.operators import registry

serializable = keras.saving.register_keras_serializable(package="test_custom")


@serializable
def tilted_relu6(x):
    """A function of operators that are exact: ReLU6, a constant factor, a sum."""
    return ops.relu6(x) + 0.125 * x


tilted_relu6.channels_like = layers.Identity


@serializable
class Bottleneck(layers.Layer):
    """relu(x · reduce) · expand + bias: two kernels and a rounding inside."""

    def __init__(self, hidden, units, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.units = hidden, units

    def build(self, shape):
        self.reduce = self.add_weight(name="reduce", shape=(shape[-1], self.hidden))
        self.expand = self.add_weight(name="expand", shape=(self.hidden, self.units))
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="normal")

    def call(self, x):
        return ops.matmul(ops.relu(ops.matmul(x, self.reduce)), self.expand) + self.bias

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden, "units": self.units}


@serializable
class EverySecond(layers.Layer):
    """Only moves values."""

    channels_like = layers.MaxPooling2D

    def call(self, x):
        return x[:, ::2, ::2]


@serializable
class Residual(layers.Layer):
    """Holds Keras layers and a layer of the user's own; its `call` is traced as it is."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = Bottleneck(3, units, name="squeeze")
        self.norm = layers.BatchNormalization(name="norm", moving_mean_initializer="normal")

    def call(self, x, training=None):
        return x + ops.hard_silu(self.norm(self.inner(x), training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def bottleneck(layer, x):
    hidden = layers.Dense(layer.hidden, "relu", use_bias=False, name="reduce")(x)
    return layers.Dense(layer.units, name="expand")(hidden)


WEIGHTS = {"reduce/kernel": "reduce", "expand/kernel": "expand", "expand/bias": "bias"}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The entries of this file, taken out again behind it."""
    tables = [KERNELS, COUNTERS, COMPRESSED, registry._BY_TYPE]
    before = [dict(table) for table in tables]
    tfc.register_operator(tilted_relu6)
    tfc.register_kernel(Bottleneck, tfc.KernelSpec("reduce"), tfc.KernelSpec("expand"))
    tfc.register_operator(Bottleneck, decompose=bottleneck, weights=WEIGHTS)
    tfc.register_operator(EverySecond, role="move")
    tfc.register_operator(Residual)

    @tfc.register_rule(Bottleneck)
    def rule(tracer, node):
        layer, axes = node.operation, tracer.of(node.inputs[0])
        hidden = tracer.made(layer, layer.hidden, "hidden")
        out = tracer.made(layer, layer.units)
        tracer.member(layer, "reduce", 0, axes[-1], Role.INPUT)
        tracer.member(layer, "reduce", 1, hidden, Role.OUTPUT)
        tracer.member(layer, "expand", 0, hidden, Role.INPUT)
        tracer.member(layer, "expand", 1, out, Role.OUTPUT)
        tracer.member(layer, "bias", 0, out, Role.OUTPUT)
        tracer.resize(layer, lambda kept: {"hidden": kept.count(hidden), "units": kept.count(out)})
        return (*axes[:-1], out)

    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(8, 3, activation=tilted_relu6, name="conv"),
            EverySecond(name="every_second"),
            Bottleneck(8, 12, name="bottleneck"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="logits"),
        ]
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)


def train(model, images, **options):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(len(images)) % 5, verbose=0, **options)


def test_they_are_quantized_trained_and_exported_as_they_were_trained(images, tmp_path):
    model = make_model()
    plan = tfc.plan(model)
    assert not plan.float_layers
    parts = {entry.name: entry.parts for entry in plan}
    assert parts["bottleneck"] == ("bottleneck_reduce", "bottleneck")
    assert parts["conv"][:2] == ("conv", "conv_activation_relu6")
    assert parts["conv"][-1] == "conv_activation"
    entry = next(e for e in plan if e.name == "every_second")
    assert entry.activations == "moves codes"
    quantized = tfc.quantize(model, calibration_data=images)
    np.testing.assert_array_equal(
        quantized.get_layer("bottleneck").kernel, model.get_layer("bottleneck").expand
    )
    np.testing.assert_allclose(quantized.predict(images, verbose=0), model(images), atol=0.1)
    assert tfc.count_macs(quantized) == tfc.count_macs(model)
    train(quantized, images, epochs=2)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors
    assert {r.equal for r in report.parity["serving_default"]} == {1.0}


def test_they_are_counted_pruned_and_clustered_and_that_passes_to_the_parts(images, tmp_path):
    model = make_model()
    macs = tfc.count_macs(model, by_layer=True)
    assert macs["bottleneck"] == 9 * (8 * 8 + 8 * 12)
    sparse = tfc.ConstantSparsity(0.5, begin_step=0, frequency=1)
    train(model, images, callbacks=[tfc.callbacks.Pruning(sparse)])
    reduce = np.asarray(model.get_layer("bottleneck").reduce)
    assert 0 < np.mean(reduce == 0) < 1
    clustered = tfc.cluster(model, 8)
    layer = clustered.get_layer("bottleneck")
    assert isinstance(layer, Bottleneck)
    values = layer.effective_weights()
    assert len(np.unique(values["expand"])) <= 8
    np.testing.assert_array_equal(np.asarray(values["reduce"]) == 0, reduce == 0)
    train(clustered, images, callbacks=[tfc.callbacks.Clustering(frequency=1)])
    clustered.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), clustered(images))
    quantized = tfc.quantize(loaded, calibration_data=images)
    train(quantized, images)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0
    rows = {row.name: row for row in report.layers}
    assert rows["bottleneck"].distinct <= 8
    assert rows["bottleneck_reduce"].distinct <= 8
    assert rows["bottleneck_reduce"].pruned >= np.sum(reduce == 0)


def test_channels_are_removed_through_them(images, tmp_path):
    model = make_model()
    small = tfc.shrink(model, target_macs=0.5, round_to=1)
    layer = small.get_layer("bottleneck")
    assert layer.hidden < 8 or layer.units < 12
    assert set(small.shrink_report.kept) == {"logits"}
    quantized = tfc.quantize(small, calibration_data=images)
    again = tfc.shrink(quantized, target_macs=0.7, round_to=1)
    assert tfc.count_macs(again) < tfc.count_macs(quantized)
    report = tfc.export_tflite(again, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0


def test_a_layer_of_layers_is_traced_and_shares_its_parts_between_its_calls(images, tmp_path):
    inputs = keras.Input((8, 8, 3), name="image")
    residual = Residual(3, name="residual")
    x = residual(EverySecond(name="half")(residual(inputs)))
    model = keras.Model(inputs, layers.Flatten()(x))
    plan = tfc.plan(model)
    assert not plan.float_layers
    parts = next(entry.parts for entry in plan if entry.name == "residual")
    assert parts[:2] == ("residual_squeeze_reduce", "residual_squeeze")
    assert "residual_norm" in parts
    assert parts[-1] == "residual"
    # Tracing leaves nothing behind in the user's layer.
    assert not residual.norm._inbound_nodes
    assert tfc.plan(model).entries == plan.entries
    quantized = tfc.quantize(model, calibration_data=images)
    assert len(quantized.get_layer("residual_squeeze")._inbound_nodes) == 2
    np.testing.assert_array_equal(
        quantized.get_layer("residual_squeeze").kernel, residual.inner.expand
    )
    difference = np.abs(quantized.predict(images, verbose=0) - model.predict(images, verbose=0))
    assert difference.max() < 0.15
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0


@serializable
class SumAndFirst(layers.Layer):
    """Several inputs and outputs, one of which is an input."""

    def call(self, inputs):
        first, second = inputs
        return ops.relu(first + second), first


@serializable
class Rows(layers.Layer):
    """Its reshape depends on the size that it is called with."""

    def call(self, x):
        return ops.reshape(ops.silu(x), (-1, x.shape[1] * x.shape[2], x.shape[3]))


def unchanged(x):
    return x


def test_outputs_that_are_inputs_and_sizes_that_differ_between_calls(images, tmp_path):
    for kind in (SumAndFirst, Rows, unchanged):
        tfc.register_operator(kind)
    image = keras.Input((8, 8, 3), name="image")
    branches = [layers.Conv2D(3, size, padding="same")(image) for size in (1, 3)]
    total, first = SumAndFirst(name="two")(branches)
    rows = Rows(name="rows")
    outputs = {
        "large": rows(total),
        "small": rows(layers.AveragePooling2D(2)(total)),
        "first": layers.Flatten()(layers.Activation(unchanged, name="same")(first)),
    }
    model = keras.Model(image, outputs)
    plan = tfc.plan(model)
    assert not plan.float_layers
    entries = {entry.name: entry for entry in plan}
    assert entries["two"].parts == ("two_add", "two_relu")
    assert entries["rows"].parts == ("rows_silu_sigmoid", "rows_silu", "rows", "rows_1")
    assert (entries["same"].parts, entries["same"].activations) == ((), "returns its input")
    quantized = tfc.quantize(model, calibration_data=images)
    expected, results = model(images), quantized(images)
    for name, value in expected.items():
        assert np.abs(results[name] - value).max() < 0.05 * np.ptp(value)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0


def test_a_layer_that_is_frozen_or_of_16_bits_has_such_parts():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Bottleneck(3, 2, dtype="mixed_bfloat16", name="b")(inputs))
    model.get_layer("b").trainable = False
    quantized = tfc.quantize(model)
    assert quantized.get_layer("b").compute_dtype == "bfloat16"
    assert not quantized.trainable_variables


def refused(decompose, message, weights=None):
    @keras.saving.register_keras_serializable(package="test_custom")
    class Mine(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(4,))

        def call(self, x):
            return x * self.scale

    tfc.register_operator(Mine, decompose=decompose, weights=weights)
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=message):
        tfc.plan(keras.Model(inputs, Mine(name="mine")(inputs)))


def test_what_is_wrong_with_a_decomposition_is_said():
    import tensorflow as tf

    def dense(layer, x):
        return layers.Dense(4, name="part")(x)

    refused(lambda layer, x: tf.sin(x), "composes Keras layers and keras.ops.*'mine' .Mine.|'mine'")
    refused(lambda layer, x: layers.Dense(3)(x), r"shapes \[\(None, 4\)\]. Received: \[\(None, 3\)")
    refused(lambda layer, x: x * layer.scale, "weights belong to Keras layers.*in weights=")
    refused(dense, "one of \\['part/kernel', 'part/bias'\\].*'part/alpha'", {"part/alpha": "scale"})
    refused(dense, "of equal shapes.*'scale' of shape", {"part/kernel": "scale"})


def test_a_trained_weight_that_is_dropped_or_made_anew_is_refused():
    def dense(layer, x):
        return layers.Dense(layer.units, name="d")(x)

    class Plain(layers.Layer):
        """A dense layer with a bias."""

        def __init__(self, units=3, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        def build(self, shape):
            self.k = self.add_weight(name="k", shape=(shape[-1], self.units))
            self.b = self.add_weight(name="b", shape=(self.units,), initializer="ones")

        def call(self, x):
            return ops.matmul(x, self.k) + self.b

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Plain(name="plain")(inputs))
    for weights, message in (
        ({"d/kernel": "k"}, r"Received: nothing for \['d/bias'\], and nothing that takes \['b'\]"),
        (None, r"nothing for \['d/kernel', 'd/bias'\], and nothing that takes \['k', 'b'\]"),
    ):
        tfc.register_operator(Plain, decompose=dense, weights=weights)
        with pytest.raises(ValueError, match=message):
            tfc.plan(model)
    tfc.register_operator(Plain, decompose=dense, weights={"d/kernel": "k", "d/bias": "b"})
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=x)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.06)


def test_pruned_zeros_inside_a_layer_are_not_lost_in_silence(images):
    inputs = keras.Input((8, 8, 3))
    residual = Residual(3, name="residual")
    x = layers.Flatten()(residual(inputs))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
    kernel = residual.inner.reduce
    kernel.assign(np.where(np.arange(kernel.shape[-1]) % 2, kernel.numpy(), 0.0))
    with pytest.warns(UserWarning, match="inside other layers are not clustered"):
        clustered = tfc.cluster(model, 4)
    assert "inside a layer" in str(tfc.clustering_report(clustered))


def test_arguments():
    with pytest.raises(TypeError, match=r"a mapping as weights. Received: \['d/kernel'\]"):
        tfc.register_operator(EverySecond, weights=["d/kernel"])
    with pytest.raises(TypeError, match=r"a text as float_reason. Received: 3"):
        tfc.register_operator(EverySecond, float_reason=3)
    with pytest.raises(TypeError, match=r"tfcompress.KernelSpec.*Received: \['reduce'\]"):
        tfc.register_kernel(EverySecond, "reduce")
    with pytest.raises(TypeError, match=r"a layer class or a function. Received: 3"):
        tfc.register_operator(3)
    with pytest.raises(ValueError, match=r"of your own. Received: .*Dense.* of Keras"):
        tfc.register_operator(layers.Dense, role="move")
    with pytest.raises(ValueError, match=r"of your own. Received: .*silu"):
        tfc.register_operator(keras.activations.silu)
    with pytest.raises(ValueError, match=r"Expected role='move'. Received: role='kernel'"):
        tfc.register_operator(EverySecond, role="kernel")
    with pytest.raises(ValueError, match=r"one of decompose, role, elementwise and float_reason"):
        tfc.register_operator(EverySecond, role="move", float_reason="it is slow")
    with pytest.raises(
        ValueError, match=r"not registered yet. Received: Bottleneck, whose kernels"
    ):
        tfc.register_kernel(Bottleneck, tfc.KernelSpec("reduce"))
    with pytest.raises(ValueError, match=r"a KernelSpec for every kernel of EverySecond"):
        tfc.register_kernel(EverySecond)
    with pytest.raises(TypeError, match=r"a layer class. Received: 'Bottleneck'"):
        tfc.register_kernel("Bottleneck", tfc.KernelSpec("reduce"))


def test_a_reason_to_stay_in_float_is_in_the_plan():
    def logarithm(x):
        return ops.log1p(ops.relu(x))

    tfc.register_operator(logarithm, float_reason="LiteRT computes logarithms in float")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Activation(logarithm, name="log")(inputs))
    assert tfc.plan(model).float_layers == {"log": "LiteRT computes logarithms in float"}


def test_a_mask_that_no_part_takes_over_keeps_the_layer_whole_and_exports_in_float(tmp_path):
    @keras.saving.register_keras_serializable(package="test_custom")
    class Twice(Bottleneck):
        pass

    tfc.register_kernel(Twice, tfc.KernelSpec("reduce"), tfc.KernelSpec("expand"))
    tfc.register_operator(Twice, decompose=bottleneck, weights={"reduce/kernel": "reduce"})
    inputs = keras.Input((6,), name="x")
    clustered = tfc.cluster(keras.Model(inputs, Twice(6, 6, name="t")(inputs)), 4)
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    with pytest.raises(ValueError, match="t: its expand is clustered or masked"):
        tfc.quantize(clustered, calibration_data=data)
    path = tmp_path / "model.tflite"
    tfc.export_tflite(clustered, path, calibration_data=data, allow_float=True)
    (outputs,) = Runner(path).predict(data).values()
    np.testing.assert_allclose(outputs, clustered(data), atol=1e-5)


_FRESH = """
import sys
sys.path.insert(0, {folder!r})
import keras, my_layers, numpy as np
model = keras.models.load_model({path!r})
np.save({out!r}, model(np.ones((2, 4), "float32")))
"""
_MODULE = """
import keras
import tfcompress as tfc

@keras.saving.register_keras_serializable(package="mine")
class Scaled(keras.layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 32))
    def call(self, x):
        return keras.ops.matmul(x, self.matrix)

tfc.register_kernel(Scaled, tfc.KernelSpec("matrix"), macs=lambda layer, inputs, output: 7)
"""


def test_a_clustered_custom_layer_loads_where_its_module_is_imported(tmp_path):
    (tmp_path / "my_layers.py").write_text(_MODULE)
    sys.path.insert(0, str(tmp_path))
    try:
        import my_layers
    finally:
        sys.path.pop(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, my_layers.Scaled()(inputs))
    assert tfc.count_macs(model) == 7
    clustered = tfc.cluster(model, 4)
    path, out = str(tmp_path / "model.keras"), str(tmp_path / "out.npy")
    clustered.save(path)
    code = _FRESH.format(folder=str(tmp_path), path=path, out=out)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(out), clustered(np.ones((2, 4), "float32")), rtol=1e-6)
