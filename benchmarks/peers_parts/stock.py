"""TensorFlow's own converter: float, full int8 by calibration, dynamic range."""

from __future__ import annotations

import keras
import tensorflow as tf

from benchmarks.peers_parts import training
from benchmarks.peers_parts.job import Job, run_job


def run(job: Job) -> None:
    """Converts the float model."""
    model = training.network(keras, job.task, job.weights("control"))
    inputs = keras.Input(model.inputs[0].shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, model(inputs)))
    if job.method != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job.method == "stock_int8":
        converter.representative_dataset = job.representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    job.path.write_bytes(converter.convert())
    job.finish(None, ["tensorflow", "keras"])


if __name__ == "__main__":
    run_job(run)
