"""Trains a net, quantizes it by calibration and by training, and measures the files."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.tasks.task import Outputs, Split, Task

#: Samples that ranges are found on, and that file and model are compared on.
_CALIBRATION, _COMPARED = 256, 200


def measure(task: Task, seed: int, data_dir: str | None, folder: pathlib.Path) -> dict[str, Any]:
    """One run: the figures of its row.

    Args:
        task: The net.
        seed: Of weights, batches and dropout.
        data_dir: Folder of the data sets.
        folder: Where the files go.
    """
    start = time.process_time()
    train, test = task.load(data_dir)
    keras.utils.set_random_seed(seed)
    model = task.build(train)
    _fit(model, task, train, task.epochs, task.learning_rate)
    found = {"metric": task.metric, "float": _score(task, _keras_predict(model), test)}
    model.save(folder / f"{task.name}.keras")
    # Not `clone_model`, in which a Normalization forgets what it has adapted to.
    control = keras.models.load_model(folder / f"{task.name}.keras", compile=False)
    _fit(control, task, train, task.extra_epochs, task.extra_learning_rate)
    found["float_longer"] = _score(task, _keras_predict(control), test)

    quantized = tfc.quantize(model, calibration_data=_samples(task, model, train, _CALIBRATION))
    compared = _samples(task, model, test, _COMPARED)
    path = folder / f"{task.name}.tflite"
    tfc.export_tflite(quantized, path, verify_data=compared, verify_samples=32)
    found["int8_calibration"] = _score(task, _file_predict(path, model), test)
    _fit(quantized, task, train, task.extra_epochs, task.extra_learning_rate)
    report = tfc.export_tflite(quantized, path, verify_data=compared)
    found["int8_training"] = _score(task, _file_predict(path, model), test)
    found = {k: v if isinstance(v, str) else f"{v:.2f}" for k, v in found.items()}
    parities = [p for outputs in report.parity.values() for p in outputs]
    return {
        **found,
        "equal": f"{100 * min(p.equal for p in parities):.2f}",
        "largest": f"{max(p.largest for p in parities):.0f}",
        "float_tensors": len(report.float_tensors),
        "partitions": report.num_partitions,
        "outside": " ".join(sorted(set(report.ops_outside))),
        "bytes": report.num_bytes,
        "epochs": f"{task.epochs}+{task.extra_epochs}",
        "cpu_seconds": f"{time.process_time() - start:.0f}",
    }


def _fit(model: keras.Model, task: Task, train: Split, epochs: int, rate: float) -> None:
    trained = model if task.sequence is None else task.sequence(model)
    # Whole batches: another size would be traced again.
    count = len(train) // task.batch_size * task.batch_size
    steps = epochs * (count // task.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    trained.compile(keras.optimizers.Adam(schedule), task.loss())
    targets = keras.tree.map_structure(lambda y: y[:count], train.targets)
    callbacks = []
    if isinstance(model, tfc.QuantizedModel):
        # The last third trains on the grids that the file has.
        callbacks = [tfc.callbacks.QuantizationSchedule(freeze_ranges_step=2 * steps // 3)]
    trained.fit(
        _as_given(train.first(count)),
        targets,
        batch_size=task.batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
    )
    norms = [la for la in _all_layers(model) if isinstance(la, keras.layers.BatchNormalization)]
    if any(la.trainable for la in norms):
        # Moving averages of a hundred steps are not yet those of the data.
        tfc.reestimate_batch_norm(model, _as_given(train.first(512)))


def _all_layers(model: keras.Model) -> list[keras.Layer]:
    nested = [la for la in model.layers if isinstance(la, keras.Model)]
    return [*model.layers, *(each for la in nested for each in _all_layers(la))]


def _as_given(arrays: Sequence[np.ndarray]) -> Any:
    return arrays[0] if len(arrays) == 1 else list(arrays)


def _samples(task: Task, model: keras.Model, split: Split, count: int) -> Any:
    if task.step_inputs is not None:
        return task.step_inputs(model, split, count)
    return _as_given(split.first(count))


def _keras_predict(model: keras.Model) -> Any:
    def predict(inputs: Sequence[np.ndarray]) -> Outputs:
        outputs = model.predict(_as_given(inputs), batch_size=100, verbose=0)
        return outputs if isinstance(outputs, dict) else {"output": outputs}

    return predict


def _file_predict(path: pathlib.Path, model: keras.Model) -> Any:
    runner, names = tfc.Runner(path), [tensor.name for tensor in model.inputs]
    return lambda inputs: runner.predict(dict(zip(names, inputs, strict=True)))


def _score(task: Task, predict: Any, test: Split) -> float:
    """The measure of a model or file that is given as a function of its inputs."""
    if task.predict is not None:
        return task.score(task.predict(predict, test), test)
    return task.score(predict(list(test.inputs)), test)
