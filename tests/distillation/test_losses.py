"""Every loss against a NumPy reference, a golden value, and what sample weights must mean."""

import keras
import numpy as np
import pytest

import tfcompress.distillation as distillation
from tfcompress.distillation.losses.attention import attention_map
from tfcompress.distillation.losses.logits import (
    logits_from_probabilities,
    softened_binary_kl,
    softened_kl,
)
from tfcompress.distillation.losses.reduction import average_pool_to, pooled_size, weighted_mean

RNG = np.random.default_rng(1)
T_LOGITS = RNG.normal(size=(6, 5)).astype("float32")
S_LOGITS = RNG.normal(size=(6, 5)).astype("float32")
T_MAP = RNG.normal(size=(6, 4, 4, 3)).astype("float32")
S_MAP = RNG.normal(size=(6, 4, 4, 3)).astype("float32")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def reference_logits(t, s, temperature=3.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def reference_binary(t, s, temperature=3.0):
    p, q = sigmoid(t / temperature), sigmoid(s / temperature)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * kl.mean(-1)


def reference_attention(t, s):
    def attention(a):
        q = (a**2).sum(-1).reshape(len(a), -1)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    return ((attention(t) - attention(s)) ** 2).sum(-1)


def reference_similarity(t, s):
    def gram(a):
        a = a.reshape(len(a), -1)
        g = a @ a.T
        return g / np.linalg.norm(g, axis=1, keepdims=True)

    return ((gram(t) - gram(s)) ** 2).sum() / len(t) ** 2


def reference_huber(d):
    return np.where(np.abs(d) <= 1, 0.5 * d * d, np.abs(d) - 0.5)


def reference_distance(t, s):
    def relative(a):
        a = a.reshape(len(a), -1).astype("float64")
        d = np.linalg.norm(a[:, None] - a[None], axis=-1)
        return d / d[~np.eye(len(a), dtype=bool)].mean()

    off = ~np.eye(len(t), dtype=bool)
    return reference_huber(relative(t) - relative(s))[off].mean()


def reference_angle(t, s):
    def cosines(a):
        a = a.reshape(len(a), -1).astype("float64")
        n = len(a)
        out = np.zeros((n, n, n))
        for j in range(n):
            for i in range(n):
                for k in range(n):
                    if len({i, j, k}) == 3:
                        u, v = a[i] - a[j], a[k] - a[j]
                        out[j, i, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        return out

    n = len(t)
    return reference_huber(cosines(t) - cosines(s)).sum() / (n * (n - 1) * (n - 2))


CASES = {
    "logits": (
        lambda: distillation.LogitsDistillation(
            3.0, teacher_from_logits=True, student_from_logits=True
        ),
        T_LOGITS,
        S_LOGITS,
        lambda t, s: reference_logits(t, s).mean(),
    ),
    "multi_label": (
        lambda: distillation.LogitsDistillation(
            3.0, multi_label=True, teacher_from_logits=True, student_from_logits=True
        ),
        T_LOGITS,
        S_LOGITS,
        lambda t, s: reference_binary(t, s).mean(),
    ),
    "hint": (distillation.FeatureDistillation, T_MAP, S_MAP, lambda t, s: ((t - s) ** 2).mean()),
    "attention": (
        distillation.AttentionTransfer,
        T_MAP,
        S_MAP,
        lambda t, s: reference_attention(t, s).mean(),
    ),
    "similarity": (distillation.SimilarityPreserving, T_MAP, S_MAP, reference_similarity),
    "distance": (distillation.RelationalDistance, T_MAP, S_MAP, reference_distance),
    "angle": (distillation.RelationalAngle, T_MAP, S_MAP, reference_angle),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_its_formula(case):
    make, teacher, student, reference = CASES[case]
    value = float(make().compute_loss(teacher, student))
    assert value == pytest.approx(float(reference(teacher, student)), rel=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_loss_of_a_perfect_student_is_zero(case):
    make, teacher, _, _ = CASES[case]
    assert float(make().compute_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_weight_of_zero_removes_a_sample(case):
    make, teacher, student, _ = CASES[case]
    other = student.copy()
    other[2] += 7.0
    weight = np.array([1, 1, 0, 2, 1, 1], "float32")
    loss = make()
    a, b = (float(loss.compute_loss(teacher, s, sample_weight=weight)) for s in (student, other))
    assert a == pytest.approx(b, rel=1e-6)
    assert a > 0


@pytest.mark.parametrize("case", CASES)
def test_weights_of_one_change_nothing_and_of_zero_leave_nothing(case):
    make, teacher, student, _ = CASES[case]
    loss, ones = make(), np.ones(6, "float32")
    plain = float(loss.compute_loss(teacher, student))
    assert float(loss.compute_loss(teacher, student, sample_weight=ones)) == pytest.approx(plain)
    assert float(loss.compute_loss(teacher, student, sample_weight=0 * ones)) == 0.0


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_the_student_only_and_is_finite_where_samples_coincide(case):
    import tensorflow as tf

    make, teacher, student, _ = CASES[case]
    student = student.copy()
    student[1] = student[0]
    loss = make()
    with tf.GradientTape() as tape:
        t, s = tf.Variable(teacher), tf.Variable(student)
        value = loss.compute_loss(t, s)
    to_teacher, to_student = tape.gradient(value, [t, s])
    assert to_teacher is None
    assert np.isfinite(to_student).all()
    assert np.abs(to_student).max() > 0


def test_golden_values():
    teacher, student = np.array([[2.0, 0.0]], "float32"), np.array([[0.0, 0.0]], "float32")
    p = 1 / (1 + np.exp(-2.0))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert float(softened_kl(teacher, student)[0]) == pytest.approx(np.log(2) - entropy, rel=1e-5)
    assert float(softened_kl(teacher, student, 2.0)[0]) == pytest.approx(4 * 0.110944, rel=1e-4)
    assert float(softened_binary_kl(teacher, student)[0]) == pytest.approx(0.163905, rel=1e-4)
    looks = attention_map(np.array([[[3.0, 0.0], [0.0, 2.0]]], "float32"))
    np.testing.assert_allclose(looks, [[9 / np.sqrt(97), 4 / np.sqrt(97)]], rtol=1e-6)


LINE = np.array([[0, 0], [1, 0], [3, 0]], "float32")
TRIANGLE = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]], "float32")


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "value"),
    [
        ("FeatureDistillation", [[1, 2], [3, 4]], [[1, 0], [0, 4]], (4 + 9) / 4),
        # Energies 9 and 4 against 1 and 0, each divided by its length.
        ("AttentionTransfer", [[[3, 0], [0, 2]]], [[[1, 0], [0, 0]]], 2 - 18 / np.sqrt(97)),
        # Rows (1, 0) and (0, 1) of similarities against (1, 1) / √2 twice.
        ("SimilarityPreserving", [[1, 0], [0, 1]], [[1, 0], [1, 0]], 1 - 1 / np.sqrt(2)),
        # Distances 1, 3, 2 over their mean 2 against 1, 1, 1: two Huber losses of a half.
        ("RelationalDistance", LINE, TRIANGLE, 2 * 0.125 / 3),
        # Cosines 1, −1, 1 against three halves: Huber losses of 0.5, −1.5 and 0.5.
        ("RelationalAngle", LINE, TRIANGLE, (0.125 + 1.0 + 0.125) / 3),
    ],
)
def test_golden_values_by_hand(loss, teacher, student, value):
    teacher, student = np.asarray(teacher, "float32"), np.asarray(student, "float32")
    received = float(getattr(distillation, loss)().compute_loss(teacher, student))
    assert received == pytest.approx(value, rel=1e-5)


def test_t_squared_keeps_the_size_of_the_gradient():
    import tensorflow as tf

    def gradient(temperature):
        s = tf.Variable(S_LOGITS)
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(softened_kl(T_LOGITS, s, temperature))
        return np.abs(tape.gradient(value, s)).mean()

    assert gradient(50.0) == pytest.approx(gradient(100.0), rel=0.02)


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_give_the_loss_of_their_logits(multi_label):
    to_p = sigmoid if multi_label else softmax
    loss = distillation.LogitsDistillation(
        4.0, multi_label=multi_label, teacher_from_logits=False, student_from_logits=False
    )
    logits = distillation.LogitsDistillation(
        4.0, multi_label=multi_label, teacher_from_logits=True, student_from_logits=True
    )
    a = float(loss.compute_loss(to_p(T_LOGITS), to_p(S_LOGITS)))
    assert a == pytest.approx(float(logits.compute_loss(T_LOGITS, S_LOGITS)), rel=1e-4)


def test_saturated_probabilities_stay_finite():
    p = np.array([[1.0, 0.0]], "float32")
    assert np.isfinite(logits_from_probabilities(p)).all()
    assert np.isfinite(logits_from_probabilities(p, multi_label=True)).all()


def test_weights_per_position():
    values = np.arange(6, dtype="float32").reshape(2, 3)
    per_position = np.array([[1, 0, 0], [0, 0, 2]], "float32")
    assert float(weighted_mean(values, per_position)) == pytest.approx(10 / 6)
    assert float(weighted_mean(values, np.array([1.0, 0.0]))) == pytest.approx(3 / 6)
    assert float(weighted_mean(values, np.array([[1.0], [0.0]]))) == pytest.approx(3 / 6)
    assert float(weighted_mean(values[:, 0], per_position)) == pytest.approx(3 * (2 / 3) / 2)


def test_pooling_brings_maps_together():
    assert pooled_size((None, 8, 8, 3), (None, 4, 2, 5)) == (4, 2)
    assert pooled_size((None, 8, 3), (None, 5, 3)) is None
    assert pooled_size((None, 8, 3), (None, 3)) is None
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    pooled = keras.ops.convert_to_numpy(average_pool_to(x, (2, 2)))[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("case", CASES)
def test_config_has_every_argument(case):
    loss = CASES[case][0]()
    again = type(loss).from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    _, teacher, student, _ = CASES[case]
    first, second = (float(x.compute_loss(teacher, student)) for x in (loss, again))
    assert first == second


def test_keras_own_distiller_takes_our_losses(make_net, images, crossentropy):
    distiller = keras.distillation.Distiller(
        make_net(8, "t"),
        make_net(4, "s"),
        distillation.LogitsDistillation(2.0, teacher_from_logits=True, student_from_logits=True),
    )
    distiller.compile("sgd", crossentropy)
    history = distiller.fit(*images, verbose=0).history
    assert np.isfinite(history["distillation_loss"]).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature` to be positive"):
        distillation.LogitsDistillation(temperature)


def test_wrong_options():
    with pytest.raises(TypeError, match="to be a number"):
        distillation.LogitsDistillation("hot")
    with pytest.raises(ValueError, match="`p` to be at least 1"):
        distillation.AttentionTransfer(p=0.5)
    with pytest.raises(ValueError, match='"auto", None or a Keras layer'):
        distillation.FeatureDistillation(adapter="linear")
