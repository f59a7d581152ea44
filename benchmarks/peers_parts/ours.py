"""tfcompress: float training for everyone, quantized training, calibration alone."""

from __future__ import annotations

import keras

import tfcompress as tfc
from benchmarks.peers_parts import training
from benchmarks.peers_parts.job import Job, run_job

_PACKAGES = ["tfcompress", "tensorflow", "keras"]


def run(job: Job) -> None:
    """Does what the method says."""
    {"start": _start, "control": _control, "ours_training": _train, "ours_calibration": _calibrate}[
        job.method
    ](job)


def _start(job: Job) -> None:
    """The float weights that training starts from, of a task that has none yet."""
    keras.utils.set_random_seed(job.seed)
    model = training.network(keras, job.task, None)
    training.train(keras, model, job)
    training.save_arrays(model, job.task, job.weights("start"))


def _control(job: Job) -> None:
    """The float model after as many epochs as the quantized ones are trained for."""
    keras.utils.set_random_seed(1000 + job.seed)
    model = training.network(keras, job.task, job.weights("start"))
    training.train(keras, model, job)
    training.save_arrays(model, job.task, job.weights("control"))
    job.finish(model, ["tensorflow", "keras"])


def _train(job: Job) -> None:
    keras.utils.set_random_seed(1000 + job.seed)
    floating = training.network(keras, job.task, job.weights("start"))
    model = tfc.quantize(floating, calibration_data=job.calibration_data())
    count = training.steps(job)
    schedule = tfc.callbacks.QuantizationSchedule(
        freeze_ranges_step=count * 3 // 4, freeze_batch_norm_step=count // 2
    )
    training.train(keras, model, job, callbacks=[schedule])
    tfc.export_tflite(model, job.path)
    trained = tfc.quantize(floating, calibration_data=job.calibration_data())
    ratio = training.step_ratio(keras, floating, trained, job.task)
    job.finish(model, _PACKAGES, ratio)


def _calibrate(job: Job) -> None:
    floating = training.network(keras, job.task, job.weights("control"))
    model = tfc.quantize(floating, calibration_data=job.calibration_data())
    tfc.export_tflite(model, job.path)
    job.finish(None, _PACKAGES)


if __name__ == "__main__":
    run_job(run)
