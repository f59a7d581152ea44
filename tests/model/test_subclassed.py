"""Subclassed models: followed into functional copies that compute the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc


class Block(keras.Model):
    """Layers, a dropout and a sum; no get_config."""

    def __init__(self, filters):
        super().__init__(name="block")
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(name="norm", moving_mean_initializer="normal")
        self.drop = layers.Dropout(0.3, name="drop")

    def call(self, x, training=None):
        y = self.drop(self.norm(self.conv(x), training=training), training=training)
        return tf.nn.relu(x + y)


class Head(layers.Layer):
    def __init__(self):
        super().__init__(name="head")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.dense = layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(self.pool(x))


class Net(keras.Model):
    """Its own loss and metric, and blocks of layers."""

    def __init__(self):
        super().__init__(name="net")
        self.stem = layers.Conv2D(8, 3, activation="relu", name="stem")
        self.blocks = [Block(8)]
        self.head = Head()
        self.score = layers.Conv2D(1, 1, name="score")
        self.factor = 0.5
        self.tracker = keras.metrics.Mean(name="own")

    def call(self, image, training=None):
        x = self.stem(image)
        for block in self.blocks:
            x = block(x, training=training)
        return {"logits": self.head(x), "score": ops.sigmoid(self.score(x))}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.factor * tf.reduce_mean((outputs["logits"] - y) ** 2)
            loss += tf.reduce_mean(outputs["score"])
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.tracker.update_state(loss)
        return {"own": self.tracker.result()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model(images):
    keras.utils.set_random_seed(0)
    net = Net()
    net(images)
    return net


def names(model):
    return [layer.name for layer in model.layers if layer.count_params()]


def test_it_is_quantized_and_exported_with_its_own_train_step(model, images, tmp_path):
    quantized = tfc.quantize(model, calibration_data=images)
    assert isinstance(quantized, Net)
    assert not quantized.plan.float_layers
    expected, found = model.predict(images, verbose=0), quantized.predict(images, verbose=0)
    for key, value in expected.items():
        assert np.abs(found[key] - value).max() < 0.05
    # The dropout is alive in training.
    difference = quantized(images, training=True)["score"] - found["score"]
    assert np.abs(difference).max() > 0.01
    before = np.array(quantized.get_layer("conv").kernel)
    quantized.compile("sgd")
    history = quantized.fit(images, np.zeros((16, 3)), verbose=0).history
    assert list(history) == ["own"]
    assert np.any(before != quantized.get_layer("conv").kernel)
    assert model.tracker.result() == 0
    report = tfc.export_tflite(quantized, tmp_path / "net.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors
    runner = tfc.Runner(tmp_path / "net.tflite")
    assert set(runner.inputs) == {"image"}
    assert set(runner.outputs) == {"logits", "score"}
    # The original has no trace of it.
    assert not model.stem._inbound_nodes
    assert not model.blocks[0].conv._inbound_nodes


@keras.saving.register_keras_serializable("tests")
class Weighing(keras.Model):
    """Its `train_step` reads what its constructor has set."""

    def __init__(self, beta=0.1, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.total = beta, keras.metrics.Mean(name="total")
        self.coder, self.decoder = layers.Dense(8, activation="relu"), layers.Dense(6)

    def call(self, x):
        return self.decoder(self.coder(x))

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss = self.beta * ops.mean(ops.square(self(x, training=True) - x))
            loss += 0.01 * ops.sum(ops.square(self.coder.kernel))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        return {"total": self.total.result()}

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@pytest.mark.parametrize(
    "make",
    [tfc.as_functional, lambda net, x: tfc.quantize(net, calibration_data=x)],
    ids=["functional", "quantized"],
)
def test_a_copy_that_was_saved_trains_on_with_its_own_train_step(make, tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    net = Weighing(beta=0.3)
    net(x)
    copy = make(net, x)
    copy.compile("sgd")
    copy.fit(x, verbose=0)
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    assert (loaded.beta, loaded.total.name) == (0.3, "total")
    assert loaded.coder is loaded.get_layer(copy.coder.name)
    both = []
    for model in (copy, loaded):
        model.compile("sgd")
        both.append(model.fit(x, shuffle=False, verbose=0).history["total"])
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    # And once more.
    loaded.save(tmp_path / "again.keras")
    assert keras.models.load_model(tmp_path / "again.keras").beta == 0.3


@keras.saving.register_keras_serializable("tests")
class Demanding(Weighing):
    """Keras cannot make it by its config."""

    def __init__(self, source):
        super().__init__()
        self.source = source

    def get_config(self):
        return {}


def test_a_class_that_its_config_does_not_make_is_loaded_with_a_warning(tmp_path):
    x = np.ones((8, 6), "float32")
    net = Demanding(source="here")
    net(x)
    quantized = tfc.quantize(net, calibration_data=x + np.eye(8, 6, dtype="float32"))
    quantized.save(tmp_path / "q.keras")
    with pytest.warns(UserWarning, match=r"Demanding has none of the attributes.*get_config"):
        loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), quantized.predict(x, verbose=0))


def test_techniques_read_it_as_its_functional_twin(model, images):
    twin = tfc.as_functional(model)
    assert sorted(names(twin)) == ["conv", "dense", "norm", "score", "stem"]
    np.testing.assert_allclose(twin(images)["logits"], model(images)["logits"], atol=1e-6)
    assert tfc.count_macs(twin) == tfc.count_macs(model, inputs=images)
    assert tfc.plan(model).entries[0].weights == "int8 per channel"
    clustered = tfc.cluster(model, 4)
    assert isinstance(clustered, Net)
    assert np.unique(clustered.get_layer("stem").effective_weights()["kernel"]).size <= 4
    assert tfc.count_macs(tfc.shrink(model, target_macs=0.5)) < tfc.count_macs(twin)
    assert tfc.count_macs(tfc.factorize(model, ranks=1)) < tfc.count_macs(twin)


class Flow(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x, training=None):
        return self.dense(x) if training else self.dense(x * 2.0)


class Weighted(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)
        self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")

    def call(self, x):
        return self.dense(x * self.scale)


class Counting(keras.Model):
    """A state that Keras does not know."""

    def __init__(self, reads=True, updates=False):
        super().__init__()
        self.dense = layers.Dense(2)
        self.state = {"count": tf.Variable(2.0, trainable=False)}
        self.reads, self.updates = reads, updates

    def call(self, x, training=None):
        if self.updates and training:
            self.state["count"].assign_add(1.0)
        return self.dense(x * self.state["count"]) if self.reads else self.dense(x)


class OneMode(keras.Model):
    """A layer that runs in one mode whatever the model does."""

    def __init__(self, layer, mode=False):
        super().__init__()
        self.layer, self.dense, self.mode = layer, layers.Dense(2), mode

    def call(self, x, training=None):
        return self.dense(self.layer(x, training=self.mode))


class Outer(OneMode):
    """The mode passes through a layer to those inside it, which are given none."""

    def call(self, x):
        return self.dense(self.layer(x))


class Thinned(layers.Layer):
    """Its default says nothing of the model's mode."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x, training=False):
        return self.layer(x)


class Noise(layers.Layer):
    def call(self, x, training=None):
        return x + keras.random.normal((4,)) if training else x


class Switched(OneMode):
    def call(self, x, training=None):
        return self.dense(self.layer(x, training=training and self.mode))


def nested_norm():
    return keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")])


@pytest.mark.parametrize("updates", [False, True])
def test_a_variable_that_keras_does_not_know_is_refused_and_left_alone(updates):
    model = Counting(updates=updates)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model(x)
    reason = "updates a tf.Variable" if updates else "reads a tf.Variable"
    with pytest.raises(ValueError, match=rf"{reason} \(state\['count'\]\)"):
        tfc.quantize(model, calibration_data=x)
    assert float(model.state["count"]) == 2.0
    unused = Counting(reads=False)
    assert tfc.as_functional(unused, (None, 4)).count_params() == 10


@pytest.mark.parametrize(
    "make",
    [
        layers.BatchNormalization,
        nested_norm,
        lambda: layers.Dropout(0.5),
        lambda: Thinned(layers.Dropout(0.5)),
        Noise,
    ],
    ids=["norm", "nested", "dropout", "block", "own"],
)
@pytest.mark.parametrize("mode", [False, True])
def test_a_call_in_one_mode_alone_is_refused(make, mode):
    with pytest.raises(ValueError, match=rf"with training={mode}.*leave the argument out"):
        tfc.as_functional(OneMode(make(), mode), (None, 4))


def test_the_mode_that_a_layer_gets_decides_and_not_how_it_is_written():
    with pytest.raises(ValueError, match="with training=False"):
        tfc.as_functional(Switched(layers.Dropout(0.5), False), (None, 4))
    copy = tfc.as_functional(Switched(Thinned(layers.Dropout(0.5)), True), (None, 4))
    assert [type(la) for la in copy.layers[1:]] == [layers.Dropout, layers.Dense]
    x = np.ones((64, 4), "float32")
    assert len(np.unique(copy(x, training=True), axis=0)) > 1


@pytest.mark.parametrize("make", [layers.BatchNormalization, nested_norm])
def test_a_frozen_batch_norm_may_run_in_inference_mode_alone(make):
    frozen = make()
    frozen.trainable = False
    copy = tfc.as_functional(OneMode(frozen), (None, 4))
    copy.compile("sgd", "mse")
    norm = next(la for la in copy.layers if isinstance(la, layers.BatchNormalization))
    copy.fit(np.full((8, 4), 9.0), np.zeros((8, 2)), verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(4))


def test_a_call_that_is_not_told_of_training_is_warned_of():
    """Keras' own `fit` does not drop in it."""
    model = Outer(Thinned(layers.Dropout(0.5, name="thin")))
    x = np.ones((8, 4), "float32")
    model(x)
    with pytest.warns(UserWarning, match=r"no argument `training`.*\(thin\).*training=None"):
        copy = tfc.as_functional(model)
    assert len(np.unique(copy(x, training=True), axis=0)) > 1
    model.compile("sgd", "mse")
    twin = model.dense(x)
    assert model.train_on_batch(x, np.zeros((8, 2))) == pytest.approx(np.mean(np.square(twin)))


class Compiled(Flow):
    @tf.function
    def call(self, x, training=None):
        return self.dense(x)


def test_what_cannot_be_followed_says_what_to_change():
    with pytest.raises(ValueError, match=r"its call is a tf\.function: leave the decorator out"):
        tfc.as_functional(Compiled(), (None, 4))
    with pytest.raises(ValueError, match=r"not built. Call it on a batch first.*as_functional"):
        tfc.quantize(Flow())
    with pytest.raises(ValueError, match=r"other operations in training.*functional API"):
        tfc.as_functional(Flow(), (None, 4))
    with pytest.raises(ValueError, match=r"reads the weight 'scale' outside of a layer.*Layer"):
        tfc.as_functional(Weighted(), (None, 4))
    functional = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert tfc.as_functional(functional) is functional


class Patches(keras.Model):
    """Reads the batch size."""

    def __init__(self):
        super().__init__()
        self.dense, self.cell = layers.Dense(5), layers.Dense(5)

    def call(self, x):
        batch = keras.ops.shape(x)[0]
        x = self.dense(keras.ops.reshape(x, (batch, 3, 2, 4)))
        x = keras.ops.concatenate([x, keras.ops.full((batch, 3, 1, 5), 0.25)], axis=2)
        x = self.cell(keras.ops.reshape(x, (batch * 3, 15)))
        return keras.ops.reshape(x, (batch, -1))


def test_a_call_may_read_the_batch_size(tmp_path):
    model = Patches()
    x = np.random.default_rng(0).normal(size=(7, 6, 4)).astype(np.float32)
    expected = model(x).numpy()
    functional = tfc.as_functional(model)
    np.testing.assert_allclose(functional.predict(x, batch_size=2, verbose=0), expected, 1e-5)
    assert functional.output_shape == (None, 15)
    functional.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), expected, 1e-5)
    plain = tfc.strip(functional)
    assert not [layer for layer in plain.layers if type(layer).__module__.startswith("tfc")]
    np.testing.assert_allclose(plain(x), expected, 1e-5)


def test_a_class_token_is_trained_and_pruned_on(tmp_path):
    class Token(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(
                name="token", shape=(shape[-1],), initializer="ones", regularizer="l2"
            )

        def call(self, x):
            token = keras.ops.tile(self.token[None, None], (keras.ops.shape(x)[0], 1, 1))
            return keras.ops.concatenate([token, x], axis=1)

    given = keras.Input((6, 4))
    x = layers.Dense(8)(Token(name="token")(given))
    model = keras.Model(given, layers.Dense(2)(layers.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(32, 6, 4)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=data)
    assert not quantized.plan.float_layers
    (token,) = [v for v in quantized.trainable_variables if "token" in v.path]
    before = token.numpy().copy()
    quantized.compile("sgd", "mse")
    quantized.fit(data, np.ones((32, 2)), verbose=0)
    assert np.abs(token.numpy() - before).max() > 1e-6
    assert len(quantized.losses) == 1
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=data)
    assert report.agreement == 1.0
    assert not report.float_tensors


class Sentences(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = layers.Embedding(50, 8), layers.Dense(3)

    def call(self, tokens):
        return self.dense(keras.ops.mean(self.embedding(tokens), axis=1))


def test_the_type_of_the_inputs_is_that_of_the_data():
    tokens = np.random.default_rng(0).integers(0, 50, (32, 7)).astype(np.int32)
    model = Sentences()
    model(tokens)
    quantized = tfc.quantize(model, calibration_data=tokens)
    assert quantized.inputs[0].dtype == "int32"
    assert not quantized.plan.float_layers
    batches = [tokens[:8], tokens[8:16]]
    assert tfc.quantize(model, calibration_data=batches).inputs[0].dtype == "int32"


def test_an_operation_that_holds_functions_is_refused_with_what_to_do():
    inputs = keras.Input((4,))
    looped = keras.ops.fori_loop(0, 3, lambda i, x: x * 0.5, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match=r"ForiLoop that holds functions. Move its call into a"):
        tfc.quantize(keras.Model(inputs, looped))
