import keras
import numpy as np
import pytest
from sklearn import metrics as sk

from tfcompress.export.runtime.metrics import score


@pytest.fixture
def classification():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    y[y == 3] = 2
    logits = rng.normal(size=(300, 4)) + 2 * np.eye(4)[y]
    logits[:, 3] -= 20
    return y, logits


def test_classification_against_scikit_learn(classification):
    y, logits = classification
    found = score(y, logits, class_names=list("abcd"))
    predicted = logits.argmax(-1)
    assert found.task == "classification"
    assert found.accuracy == sk.accuracy_score(y, predicted)
    np.testing.assert_array_equal(
        found.confusion, sk.confusion_matrix(y, predicted, labels=range(4))
    )
    for name in ("precision", "recall", "f1"):
        expected = getattr(sk, f"{name}_score")(
            y, predicted, average=None, labels=range(4), zero_division=0
        )
        np.testing.assert_allclose([getattr(c, name) for c in found.classes], expected)
        macro = getattr(sk, f"{name}_score")(y, predicted, average="macro", zero_division=0)
        assert getattr(found, name) == pytest.approx(macro)
    assert [c.name for c in found.classes] == list("abcd")
    assert [c.samples for c in found.classes] == np.bincount(y, minlength=4).tolist()
    one_hot = score(np.eye(4)[y], logits)
    assert one_hot.confusion == found.confusion
    # Per position, as in a segmentation.
    grid = score(y.reshape(3, 10, 10), logits.reshape(3, 10, 10, 4))
    assert (grid.accuracy, grid.samples) == (found.accuracy, 300)


def test_calibration_error():
    # Ten samples that are right in 6 of 10 with a confidence of 0.9, ten in 10 of 10 with 0.6.
    p = np.concatenate([np.tile([0.9, 0.1], (10, 1)), np.tile([0.6, 0.4], (10, 1))])
    y = np.array([0] * 6 + [1] * 4 + [0] * 10)
    assert score(y, p).calibration_error == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)
    logits = np.log(p)
    assert score(y, logits).calibration_error == pytest.approx(0.35)


def test_binary_and_regression():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    logits = rng.normal(size=(200, 1)) + 2 * (y[:, None] - 0.5)
    found = score(y, logits)
    assert found.task == "binary"
    assert found.accuracy == sk.accuracy_score(y, logits[:, 0] > 0)
    assert found.classes[1].recall == pytest.approx(sk.recall_score(y, logits[:, 0] > 0))
    assert score(y, 1 / (1 + np.exp(-logits))).confusion == found.confusion
    targets = rng.normal(size=(50, 3)).astype(np.float32)
    values = targets + rng.normal(size=(50, 3)) / 5
    found = score(targets, values)
    assert found.task == "regression"
    assert found.mean_absolute_error == pytest.approx(sk.mean_absolute_error(targets, values))
    assert found.root_mean_squared_error**2 == pytest.approx(sk.mean_squared_error(targets, values))
    expected = sk.r2_score(targets, values, multioutput="variance_weighted")
    assert found.r2 == pytest.approx(expected)
    assert found.accuracy is None


def test_metrics_of_others(classification):
    y, logits = classification
    given = {
        "balanced": sk.balanced_accuracy_score,
        "top 2": lambda y_true, y_score: sk.top_k_accuracy_score(
            y_true, y_score, k=2, labels=range(4)
        ),
        "keras": keras.metrics.SparseTopKCategoricalAccuracy(k=2),
    }
    found = score(y, logits, given).metrics
    assert found["balanced"] == pytest.approx(sk.balanced_accuracy_score(y, logits.argmax(-1)))
    assert found["top 2"] == pytest.approx(found["keras"], abs=1e-6)


def test_labels_that_do_not_fit():
    outputs = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"0 to 2, for 3 outputs\. Received: 0 to 3"):
        score(np.arange(4), outputs)
    with pytest.raises(ValueError, match=r"label for every sample\. Received: 2"):
        score(np.zeros(2, int), outputs)
    with pytest.raises(ValueError, match=r"class numbers of shape \(4,\), or targets of shape"):
        score(np.zeros((4, 2)), outputs)
