"""Everything that can teach: callables, `.tflite` files, ensembles."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.distillation import (
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    TeacherEnsemble,
    TFLiteTeacher,
)


def stated():
    return LogitsDistillation(2.0, teacher_from_logits=True)


def test_callable(make_net, images, crossentropy):
    teacher = make_net(8, "t")
    student = make_net(4, "s")
    from_function = Distiller(lambda x: teacher(x, training=False), student, stated())
    from_model = Distiller(teacher, student, LogitsDistillation(2.0))
    logs = []
    for distiller in (from_function, from_model):
        distiller.compile("sgd", crossentropy, run_eagerly=True)
        logs.append(distiller.evaluate(*images, verbose=0))
    assert logs[0] == pytest.approx(logs[1])
    from_function.fit(*images, verbose=0)


def test_callable_with_several_outputs(make_net, images):
    teacher = make_net(8, "t")
    two = Distiller(
        lambda x: {"logits": teacher(x), "other": x},
        make_net(4, "s"),
        LogitsDistillation(teacher_layer="logits", teacher_from_logits=True),
        student_loss_weight=0.0,
    )
    two.compile("sgd", run_eagerly=True)
    two.fit(images[0], verbose=0)
    with pytest.raises(ValueError, match=r"Expected one of 2 output.*Did you mean 'logits'"):
        Distiller(
            lambda x: {"logits": teacher(x), "other": x},
            make_net(4, "s"),
            LogitsDistillation(teacher_layer="logit", teacher_from_logits=True),
        )


@pytest.fixture(scope="module")
def tflite_files(tmp_path_factory):
    """A float file with a dynamic batch and an int8 file of batch 1, from one linear function."""
    folder = tmp_path_factory.mktemp("tflite")
    kernel = tf.constant(np.random.default_rng(0).normal(size=(64, 10)), tf.float32)

    def convert(batch, int8):
        spec = tf.TensorSpec((batch, 8, 8, 1), tf.float32)
        module = tf.Module()
        module.f = tf.function(lambda x: tf.reshape(x, (-1, 64)) @ kernel, input_signature=[spec])
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.f.get_concrete_function()], module
        )
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            rng = np.random.default_rng(0)  # The images of the fixture.
            batches = [[rng.random((1, 8, 8, 1), np.float32)] for _ in range(64)]
            converter.representative_dataset = lambda: iter(batches)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        path = folder / f"{batch}_{int8}.tflite"
        path.write_bytes(converter.convert())
        return path

    return {"float": convert(4, False), "int8": convert(1, True), "kernel": kernel.numpy()}


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_tflite_file(tflite_files, make_net, images, crossentropy, kind):
    path = tflite_files[kind]
    expected = images[0].reshape(-1, 64) @ tflite_files["kernel"]
    outputs = TFLiteTeacher(path).predict(images[0][:30])[0]
    assert outputs.shape == (30, 10)
    spread = expected.max() - expected.min()
    np.testing.assert_allclose(
        outputs, expected[:30], atol=0.03 * spread if kind == "int8" else 1e-4
    )
    distiller = Distiller(path, make_net(4, "s"), stated())
    distiller.compile("sgd", crossentropy)
    distiller.fit(*images, batch_size=30, verbose=0)
    assert distiller.get_config()["teacher"]["config"]["path"] == str(path)


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_distiller_with_a_tflite_file_is_saved(
    tflite_files, make_net, images, crossentropy, tmp_path, ensemble
):
    path = tflite_files["float"]
    teacher = TeacherEnsemble([path, TFLiteTeacher(path)], [1.0, 3.0]) if ensemble else path
    distiller = Distiller(teacher, make_net(4, "s"), stated())
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        distiller.compile("sgd", crossentropy, jit_compile=True)
    distiller.fit(*images, verbose=0)
    distiller.compile("sgd", crossentropy)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    logs = [m.evaluate(*images, verbose=0, return_dict=True) for m in (distiller, again)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_tflite_file_that_does_not_fit(tflite_files, tmp_path, make_net):
    with pytest.raises(FileNotFoundError, match=r"Expected a \.tflite file"):
        Distiller(str(tmp_path / "none.tflite"), make_net(4, "s"), stated())
    with pytest.raises(ValueError, match=r"Expected inputs of shape"):
        TFLiteTeacher(tflite_files["float"]).predict(np.zeros((4, 3), "float32"))


def test_ensemble_is_the_weighted_mean(make_net, images, crossentropy, tmp_path):
    x, _ = images
    one, two = make_net(8, "one"), make_net(6, "two")
    ensemble = TeacherEnsemble([one, two], [3.0, 1.0])
    mean = 0.75 * one.predict(x, verbose=0) + 0.25 * two.predict(x, verbose=0)
    np.testing.assert_allclose(ensemble.predict(x, verbose=0), mean, rtol=1e-4, atol=1e-6)
    distiller = Distiller(ensemble, make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    distiller.fit(*images, verbose=0)
    assert len(distiller.trainable_variables) == len(distiller.student.trainable_variables)
    before = distiller.evaluate(*images, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert again.evaluate(*images, verbose=0) == pytest.approx(before, rel=1e-5)


def test_ensembles_that_make_no_sense(make_net):
    logits, probabilities = make_net(4, "a"), make_net(4, "b", head_activation="softmax")
    with pytest.raises(ValueError, match="a mean of logits and probabilities is neither"):
        TeacherEnsemble([logits, probabilities])
    with pytest.raises(ValueError, match="as many weights as teachers"):
        TeacherEnsemble([logits], [1.0, 2.0])
    with pytest.raises(ValueError, match="not all 0"):
        TeacherEnsemble([logits], [0.0])
    with pytest.raises(TypeError, match="TeacherEnsemble"):
        Distiller([logits, logits], logits, LogitsDistillation())


def test_ensemble_of_known_and_unknown_activations(make_net):
    known, student = make_net(4, "a"), make_net(4, "s")
    ensemble = TeacherEnsemble([known, lambda x: known(x)])
    with pytest.raises(ValueError, match="teacher_from_logits=True` for logits"):
        Distiller(ensemble, student, LogitsDistillation())
    Distiller(ensemble, student, stated())
    reshaped = keras.Sequential([make_net(4, "b"), keras.layers.Lambda(lambda x: 2 * x)])
    Distiller(TeacherEnsemble([known, reshaped]), student, stated())


def test_ensemble_of_outputs_that_differ(make_net, images):
    inputs = keras.Input((8, 8, 1))
    one = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"the same structure and shapes.*10\).*1\)"):
        TeacherEnsemble([make_net(4, "a"), one])(images[0])
    with pytest.raises(ValueError, match="the same structure and shapes"):
        TeacherEnsemble([one, lambda x: {"a": one(x)}])(images[0])


def test_a_function_is_saved_by_its_name(make_net, images, crossentropy, tmp_path):
    teacher = make_net(4, "t")

    def teach(x):
        return teacher(x, training=False)

    distiller = Distiller(teach, make_net(4, "s"), stated())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras", custom_objects={"teach": teach})
    logs = [m.evaluate(*images, verbose=0, return_dict=True) for m in (distiller, again)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_chain_of_teaching_assistants(make_net, images, crossentropy):
    teacher = make_net(16, "big")
    for student in (make_net(8, "assistant"), make_net(2, "small")):
        distiller = Distiller(teacher, student, LogitsDistillation(4.0))
        distiller.compile("adam", crossentropy, run_eagerly=True)
        distiller.fit(*images, verbose=0)
        teacher = student
    assert distiller.teacher.name == "assistant"


def test_teacher_with_probabilities_is_detected(make_net, images):
    teacher = make_net(8, "t", head_activation="softmax")
    twin = make_net(8, "twin")
    twin.set_weights(teacher.get_weights())
    student = make_net(4, "s")
    values = []
    for model in (teacher, twin):
        distiller = Distiller(model, student, LogitsDistillation(4.0), student_loss_weight=0.0)
        distiller.compile("sgd", run_eagerly=True)
        values.append(distiller.evaluate(images[0], verbose=0))
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_features_of_a_wider_and_larger_teacher(images, crossentropy):
    def net(width, strides, name):
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(width, 3, strides, padding="same", name="conv")(inputs)
        x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, x, name=name)

    teacher, student = net(8, 1, "t"), net(3, 2, "s")
    loss = FeatureDistillation("conv", "conv")
    distiller = Distiller(teacher, student, loss)
    assert loss.adapters[0].kernel.shape == (3, 8)
    distiller.compile(keras.optimizers.Adam(0.05), crossentropy, run_eagerly=True)
    history = distiller.fit(*images, epochs=5, verbose=0).history["feature_distillation"]
    assert history[-1] < 0.8 * history[0]
    with pytest.raises(ValueError, match="belongs to another Distiller"):
        Distiller(teacher, net(3, 2, "s2"), loss)
    own = keras.layers.Conv2D(8, 1, name="own")
    Distiller(teacher, net(3, 2, "s3"), FeatureDistillation("conv", "conv", adapter=own))
    assert own.built
