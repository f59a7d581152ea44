import base64
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

import tfcompress as tfc


def test_classes_samples_and_regions(model_files, digits, tmp_path):
    model = keras.saving.load_model(model_files / "model.keras", compile=False)
    damaged = keras.models.clone_model(model)
    damaged.set_weights(model.get_weights())
    # It hardly calls anything a three.
    kernel, bias = damaged.layers[-1].get_weights()
    bias[3] -= 6
    damaged.layers[-1].set_weights([kernel, bias])
    x, y = digits[1]
    found = tfc.explain_difference(model, damaged, (x, y), class_names=[f"n{i}" for i in range(10)])
    old, new = (m.predict(x, verbose=0).argmax(-1) for m in (model, damaged))
    assert found.changed == np.sum(old != new)
    worst = found.classes[0]
    assert worst.name == "n3"
    assert worst.recall_before == pytest.approx(np.mean(old[y == 3] == 3))
    assert worst.recall_after == pytest.approx(np.mean(new[y == 3] == 3))
    assert worst.lost == np.sum((old == y) & (new != y) & (y == 3))
    assert worst.p_value < 0.01
    assert [e.before != e.after for e in found.examples] == [True] * min(16, found.changed)
    assert found.examples[0].before == "n3"
    divergences = [e.divergence for e in found.examples]
    assert divergences == sorted(divergences, reverse=True)
    assert found.maps.samples == 8
    # A bias moves no gradient.
    assert found.gradients.rank_correlation == pytest.approx(1.0)
    assert "input gradients, 8 samples" in str(found)
    page = found.save_html(tmp_path / "page.html").read_text("utf-8")
    picture = base64.b64decode(re.search(r'base64,([^"]+)"', page)[1])
    pixels = tf.io.decode_png(picture).numpy()
    expected = x[found.examples[0].index]
    np.testing.assert_allclose(
        pixels / 255 * np.ptp(expected) + expected.min(), expected, atol=0.01
    )


def test_a_file_and_itself(model_files, digits):
    x = digits[1][0][:40]
    path = model_files / "int8.tflite"
    found = tfc.explain_difference(path, path, x)
    assert (found.changed, found.classes, found.gradients) == (0, (), None)
    assert found.maps.rank_correlation == pytest.approx(1.0)
    assert found.maps.top_overlap == 1.0
    assert all(e.divergence == 0 and e.label is None for e in found.examples)
    assert "0 of 40 samples" in str(found)


def test_wrong_arguments(model_files, digits):
    x = digits[1][0]
    path = model_files / "int8.tflite"
    with pytest.raises(ValueError, match="Expected 10 class_names"):
        tfc.explain_difference(path, path, x, class_names=["a"])
    three = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match="the same classes"):
        tfc.explain_difference(path, three, x)
    grid = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 1)])
    for labels in (np.full(len(x), 10), np.full(len(x), 0.5), np.zeros((len(x), 2))):
        with pytest.raises(ValueError, match=r"class numbers from 0 to 9\. Received"):
            tfc.explain_difference(path, path, (x, labels), maps=False)
    with pytest.raises(ValueError, match="Expected classifiers"):
        tfc.explain_difference(grid, grid, x)


def test_gradients_of_a_quantized_model_against_a_tape(digits):
    x, y = digits[1][0][:16], digits[1][1][:16]
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(4, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))
    quantized = tfc.quantize(model, "int4", calibration_data=x)
    found = tfc.explain_difference(model, quantized, (x, np.eye(10)[y]))
    # The reference: the plain model with the rounded weights.
    maps = []
    for each in (model, tfc.strip(quantized)):
        pictures = tf.constant(x[[e.index for e in found.examples[:8]]])
        with tf.GradientTape() as tape:
            tape.watch(pictures)
            own = model(pictures).numpy().argmax(-1)
            values = tf.gather(each(pictures), own, batch_dims=1)
        maps.append(np.abs(tape.gradient(values, pictures).numpy()).sum(-1).reshape(8, -1))
    expected = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)])
    assert found.gradients.rank_correlation == pytest.approx(expected, abs=0.02)
    assert 0.5 < found.gradients.rank_correlation < 1
