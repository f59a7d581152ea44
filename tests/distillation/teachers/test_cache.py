"""Cached teacher outputs: computed once, tied to their data, and worth the teacher."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.distillation import (
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    TeacherCache,
    TeacherEnsemble,
)
from tfcompress.distillation.checksum import checksum_of_arrays, checksum_of_teacher


@pytest.fixture
def teacher(make_net):
    return make_net(8, "t")


def test_outputs_are_the_teachers(teacher, images, tmp_path):
    cache = TeacherCache.compute(teacher, images[0], tmp_path / "t.npz", layers=["pool"])
    np.testing.assert_allclose(cache.outputs, teacher.predict(images[0], verbose=0), atol=1e-6)
    assert cache.features["pool"].shape == (64, 8)
    assert cache.activations == ["none"]
    assert len(cache) == 64
    again = TeacherCache.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.outputs, cache.outputs)
    assert again.checksum == cache.checksum


def test_a_second_run_does_not_run_the_teacher(teacher, images, tmp_path):
    calls = []

    def count(x):
        calls.append(1)
        return teacher(x)

    for _ in range(2):
        TeacherCache.compute(count, images[0], tmp_path / "t.npz")
        assert len(calls) == 1


def test_other_data_and_other_teachers_are_refused(make_net, teacher, images, tmp_path):
    x, _ = images
    path = tmp_path / "t.npz"
    cache = TeacherCache.compute(teacher, x, path)
    changed = x.copy()
    changed[5, 0, 0, 0] += 1e-3
    for other in (changed, x[::-1], x[:-1], x.astype("float64")):
        with pytest.raises(ValueError, match="was computed on"):
            cache.pair(other)
        with pytest.raises(ValueError, match="was computed on"):
            TeacherCache.compute(teacher, other, path)
    with pytest.raises(ValueError, match="was computed on"):
        cache.attach(tf.data.Dataset.from_tensor_slices(changed))
    with pytest.raises(ValueError, match="other weights"):
        TeacherCache.compute(make_net(8, "other"), x, path)
    with pytest.raises(ValueError, match=r"Expected the features of \['pool'\]"):
        TeacherCache.compute(teacher, x, path, layers=["pool"])


def test_a_teacher_is_known_by_all_it_computes_with(make_net):
    a, b = make_net(8, "a"), make_net(8, "b")
    copy = keras.models.clone_model(a)
    copy.set_weights(a.get_weights())
    assert checksum_of_teacher(copy) == checksum_of_teacher(a)
    scaled = keras.Sequential([keras.Input(a.input_shape[1:]), keras.layers.Rescaling(0.5), a])
    other = keras.Sequential([keras.Input(a.input_shape[1:]), keras.layers.Rescaling(0.25), a])
    ensembles = [TeacherEnsemble([a, b], weights) for weights in ([3, 1], [1, 3])]
    halves = keras.layers.Rescaling(0.5, dtype="bfloat16")
    rounded = keras.Sequential([keras.Input(a.input_shape[1:]), halves, a])
    teachers = [a, b, scaled, other, rounded, *ensembles]
    assert len({checksum_of_teacher(teacher) for teacher in teachers}) == len(teachers)
    assert checksum_of_teacher(TeacherEnsemble([a, lambda x: x])) is None


def test_a_teacher_that_is_made_again_is_the_same(make_net):
    a, b = make_net(8, "a"), make_net(8, "b")

    def averaged(first, second, order=(0, 1)):
        image = keras.Input(a.input_shape[1:])
        views = [first(image), second(keras.ops.roll(image, 1, axis=1))]
        return keras.Model(image, keras.layers.subtract([views[i] for i in order]))

    # Keras counts names up, `subtract` and `subtract_1`; a model may be called as one inside it.
    again = averaged(a, b)
    again.name = a.name
    assert checksum_of_teacher(averaged(a, b)) == checksum_of_teacher(again)
    # The same layers and weights, connected otherwise, compute something else.
    wired = [averaged(a, b), averaged(a, b, order=(1, 0)), averaged(b, a)]
    assert len({checksum_of_teacher(model) for model in wired}) == 3


def test_damaged_files_are_refused_and_nothing_is_half_written(teacher, images, tmp_path):
    path = tmp_path / "t.npz"
    cache = TeacherCache.compute(teacher, images[0], path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="Expected a file of cached teacher outputs"):
        TeacherCache.load(path)
    cache.outputs = cache.outputs + 1  # The checksum of the contents is of what is written.
    cache.save(path)
    assert TeacherCache.load(path).outputs[0, 0] == cache.outputs[0, 0]
    with pytest.raises(FileNotFoundError):
        TeacherCache.load(tmp_path / "none.npz")


def test_nothing_of_a_tampered_file_is_used(teacher, images, tmp_path):
    """The checksum is of the index too, and an index is no object of Keras."""
    path = tmp_path / "t.npz"
    TeacherCache.compute(teacher, images[0], path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))

    def written(change=None, compress=False, **others):
        contents = {**arrays, **others}
        if change is not None:
            contents["meta"] = np.array(json.dumps({**meta, **change}))
        rest = {name: array for name, array in contents.items() if name != "contents"}
        sealed = {"contents": np.array(checksum_of_arrays(rest)), **rest}
        (np.savez_compressed if compress else np.savez)(path, **sealed)

    written()
    assert len(TeacherCache.load(path)) == 64
    np.savez(path, **{**arrays, "meta": np.array(json.dumps({**meta, "activations": ["softmax"]}))})
    with pytest.raises(ValueError, match="do not match their checksum"):
        TeacherCache.load(path)
    teacher_class = {"class_name": "TFLiteTeacher", "registered_name": "tfcompress>TFLiteTeacher"}
    nan = arrays["array_0"].copy()
    nan[3] = np.nan
    for options, message in (
        ({"change": {"outputs": {**teacher_class, "config": {"path": "a"}}}}, "Expected a file"),
        ({"change": {"outputs": "array_9"}}, "Expected a file"),
        ({"change": {"outputs": 3}}, "Expected a file"),
        ({"change": {"activations": ["exec"]}}, "activations are"),
        ({"change": {"teacher_checksum": ["a"]}}, "in place of"),
        ({"array_0": arrays["array_0"][:-1], "array_1": arrays["array_0"]}, None),
        ({"compress": True}, "compressed"),
        ({"array_0": np.array([{}], object)}, "objects|Object arrays|pickle"),
        ({"array_0": nan}, "sample 3 and 0 others"),
    ):
        written(**options)
        if message is None:
            assert len(TeacherCache.load(path)) == 63
            continue
        with pytest.raises(ValueError, match=message):
            TeacherCache.load(path)


def test_a_file_takes_no_more_memory_than_it_has_bytes(tmp_path):
    """A header of a few bytes claims two terabytes."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1), np.float32))
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": (2**39, 1)})
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("meta.npy", "contents.npy", "array_0.npy"):
            file.writestr(name, stream.getvalue())
    with pytest.raises(ValueError, match="another size than it says"):
        TeacherCache.load(path)


def test_a_teacher_that_gives_nan_is_refused(images, tmp_path):
    x = images[0].copy()
    x[9] = 7.0

    def teacher(inputs):
        rows = tf.reduce_max(inputs, (1, 2, 3))[:, None]
        return tf.where(rows > 6.0, np.float32(np.nan), rows)

    with pytest.raises(ValueError, match=r"Expected finite outputs.*sample 9 and 0 others"):
        TeacherCache.compute(teacher, x, tmp_path / "t.npz", batch_size=4)
    assert not (tmp_path / "t.npz").exists()


def test_checksum_does_not_depend_on_batches_or_container(teacher, images):
    x, y = images
    a = TeacherCache.compute(teacher, x, batch_size=64)
    b = TeacherCache.compute(teacher, x, batch_size=7)
    c = TeacherCache.compute(teacher, tf.data.Dataset.from_tensor_slices((x, y)), batch_size=5)
    assert a.checksum == b.checksum == c.checksum


@pytest.mark.parametrize("container", ["arrays", "dataset"])
def test_cached_training_is_training_with_the_teacher(
    make_net, teacher, images, crossentropy, container
):
    x, y = images
    results = []
    for cached in (False, True):
        keras.utils.set_random_seed(7)
        student = make_net(4, "s")
        source = TeacherCache.compute(teacher, x, layers=["pool"]) if cached else teacher
        losses = [LogitsDistillation(2.0), FeatureDistillation("pool", "pool")]
        distiller = Distiller(source, student, losses)
        distiller.compile(
            keras.optimizers.SGD(0.1), crossentropy, metrics=["accuracy"], run_eagerly=True
        )
        if container == "arrays":
            inputs = source.pair(x) if cached else x
            history = distiller.fit(inputs, y, batch_size=16, shuffle=True, epochs=2, verbose=0)
        else:
            data = tf.data.Dataset.from_tensor_slices((x, y))
            data = source.attach(data) if cached else data
            data = data.shuffle(64, seed=1).batch(16)
            history = distiller.fit(data, epochs=2, shuffle=False, verbose=0)
        results.append((history.history["loss"], student.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_augmentation_after_attaching_keeps_the_teacher(teacher, images, make_net, crossentropy):
    x, y = images
    cache = TeacherCache.compute(teacher, x)

    def augment(inputs, label):
        flipped = tf.image.flip_left_right(inputs["student_inputs"])
        return {**inputs, "student_inputs": flipped}, label

    data = cache.attach(tf.data.Dataset.from_tensor_slices((x, y))).map(augment).batch(64)
    inputs, _ = next(iter(data))
    np.testing.assert_allclose(inputs["student_inputs"], x[:, :, ::-1])
    np.testing.assert_allclose(inputs["teacher_outputs"]["outputs"], cache.outputs)
    distiller = Distiller(cache, make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    distiller.fit(data, shuffle=False, verbose=0, class_weight=dict.fromkeys(range(10), 1.0))


def test_plain_data_trains_nothing_but_evaluates(teacher, images, make_net, crossentropy):
    x, y = images
    cache = TeacherCache.compute(teacher, x)
    distiller = Distiller(cache, make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    with pytest.raises(ValueError, match=r"cache\.pair"):
        distiller.fit(x, y, verbose=0)
    history = distiller.fit(cache.pair(x), y, validation_data=(x, y), verbose=0).history
    assert "val_logits_distillation" not in history
    assert history["val_loss"] == pytest.approx(history["val_student_loss"])
    logs = distiller.evaluate(cache.pair(x), y, verbose=0, return_dict=True)
    assert "logits_distillation" in logs
    assert distiller.predict(x, verbose=0).shape == (64, 10)


def test_features_that_were_not_cached(teacher, images, make_net):
    cache = TeacherCache.compute(teacher, images[0], layers=["pool"])
    with pytest.raises(ValueError, match=r"its cached layers: \['pool'\]"):
        Distiller(cache, make_net(4, "s"), FeatureDistillation("conv", "conv"))


def test_saving_a_cached_distiller(teacher, images, make_net, crossentropy, tmp_path):
    x, y = images
    cache = TeacherCache.compute(teacher, x)
    distiller = Distiller(cache, make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    with pytest.raises(ValueError, match="Compute it with `path"):
        distiller.save(tmp_path / "d.keras")
    cache.save(tmp_path / "t.npz")
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    pairs = [m.evaluate(m.teacher.pair(x), y, verbose=0) for m in (distiller, again)]
    assert pairs[0] == pytest.approx(pairs[1])
