"""TensorFlow Model Optimization: quantization-aware training, on the legacy Keras."""

from __future__ import annotations

import os

# Of this process alone, before TensorFlow is imported.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from benchmarks.peers_parts import training
from benchmarks.peers_parts.job import Job, run_job

_PACKAGES = ["tensorflow-model-optimization", "tf_keras", "tensorflow"]


def run(job: Job) -> None:
    """Trains, converts to full int8."""
    tf_keras.utils.set_random_seed(1000 + job.seed)
    floating = training.network(tf_keras, job.task, job.weights("start"))
    model = tfmot.quantization.keras.quantize_model(floating)
    training.train(tf_keras, model, job)
    inputs = tf_keras.Input(floating.inputs[0].shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(tf_keras.Model(inputs, model(inputs)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    job.path.write_bytes(converter.convert())
    fresh = training.network(tf_keras, job.task, job.weights("start"))
    trained = tfmot.quantization.keras.quantize_model(fresh)
    ratio = training.step_ratio(tf_keras, fresh, trained, job.task)
    job.finish(model, _PACKAGES, ratio)


if __name__ == "__main__":
    run_job(run)
