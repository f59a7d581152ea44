import keras
import numpy as np
import pytest

from recipes import models

SHAPES = {
    "lenet300": (28, 28, 1),
    "lenet5": (28, 28, 1),
    "small_cnn": (28, 28, 1),
    "resnet8": (32, 32, 3),
    "ds_cnn": (49, 10, 1),
    "digits_cnn": (8, 8, 1),
}

# As the table in the module says; the two LeNets and the ResNet are known from the literature.
PARAMETERS = {
    "lenet300": 266_610,
    "lenet5": 431_080,
    "small_cnn": 186_794,
    "resnet8": 78_666,
    "ds_cnn": 24_202,
    "digits_cnn": 10_074,
}


def test_every_architecture_is_tested():
    assert set(models.ARCHITECTURES) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_shapes(name):
    model = models.build(name, SHAPES[name], 10)
    assert model.count_params() == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,}" in models.__doc__
    assert model.inputs[0].name == "image"
    assert model.get_layer("logits").output is model.output
    x = np.random.default_rng(0).uniform(0, 255, (2, *SHAPES[name])).astype(np.float32)
    y = model.predict(x, verbose=0)
    assert y.shape == (2, 10)
    assert np.abs(y[0] - y[1]).max() > 0


@pytest.mark.parametrize("name", SHAPES)
def test_saves_and_loads(name, tmp_path):
    model = models.build(name, SHAPES[name], 4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).uniform(0, 255, (2, *SHAPES[name])).astype(np.float32)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_digits_cnn_learns_the_digits(digits):
    (x, y), test = digits
    model = models.build("digits_cnn", (8, 8, 1), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=5, verbose=0)
    assert model.evaluate(*test, verbose=0)[1] > 0.92


@pytest.mark.parametrize(
    ("name", "shape", "scale"), [("small_cnn", (16, 16, 1), 255), ("ds_cnn", (16, 10, 1), 1)]
)
def test_learns_a_handful_of_samples(name, shape, scale):
    x = np.random.default_rng(0).uniform(0, scale, (8, *shape)).astype(np.float32)
    y = np.arange(8) % 4
    model = models.build(name, shape, 4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    history = model.fit(x, y, batch_size=8, epochs=25, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"lenet300, lenet5.*name='vgg'"):
        models.build("vgg", (8, 8, 1), 10)
    for shape in ((8, 8), (8, 8, 1)):
        with pytest.raises(ValueError, match=r"at least 16x16 for lenet5. Received: input_shape="):
            models.build("lenet5", shape, 10)
    with pytest.raises(ValueError, match="num_classes=1"):
        models.build("lenet300", (8, 8, 1), 1)
