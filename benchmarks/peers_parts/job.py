"""What a process of one tool is given, and what it leaves; NumPy is all that is imported."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Job:
    """One method on one task.

    Attributes:
        task: `"mnist"` or `"cifar10"`.
        method: See `METHODS` of `benchmarks.peers`.
        seed: Of shuffling, augmentation and calibration samples.
        epochs: Of the training that every method has in common.
        rate: Learning rate at the start of the cosine decay.
        folder: Holds the data (`data.npz`), the float weights that training starts from
            (`start.npz`), those after training in float (`control.npz`) and its file
            (`float.tflite`); results go there.
        calibration_samples: Samples that ranges come from.
    """

    task: str
    method: str
    seed: int
    epochs: int
    rate: float
    folder: str
    calibration_samples: int = 512

    @property
    def path(self) -> pathlib.Path:
        """Of the `.tflite` that the method makes."""
        return pathlib.Path(self.folder, f"{self.method}.tflite")

    @property
    def outputs(self) -> pathlib.Path:
        """Of the logits on the test set, by the model that the file is made of."""
        return self.path.with_suffix(".npy")

    @property
    def notes(self) -> pathlib.Path:
        """Of versions and the cost of a step."""
        return self.path.with_suffix(".json")

    def data(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Training and test samples: images as bytes, and class numbers."""
        with np.load(pathlib.Path(self.folder, "data.npz")) as file:
            return (file["x"], file["y"]), (file["x_test"], file["y_test"])

    def weights(self, name: str) -> str:
        """Path of `start.npz` or `control.npz`."""
        return str(pathlib.Path(self.folder, f"{name}.npz"))

    def calibration_data(self) -> np.ndarray:
        """Scaled samples of the training set: the same ones for every method."""
        (x, _), _ = self.data()
        random = np.random.default_rng(self.seed)
        return scaled(self.task, x[random.choice(len(x), self.calibration_samples, replace=False)])

    def representative(self) -> Iterator[list[np.ndarray]]:
        """`calibration_data` as TensorFlow's converter takes it."""
        for image in self.calibration_data():
            yield [image[None]]

    def finish(self, model: Any, packages: list[str], step_ratio: float | None = None) -> None:
        """Writes the logits of a model on the test set, and the notes.

        Args:
            model: A Keras model of either Keras, or `None` where another method has left them.
            packages: Whose versions to note.
            step_ratio: Cost of a training step over that of a float one.
        """
        if model is not None:
            _, (x, _) = self.data()
            parts = [
                model.predict(scaled(self.task, x[i : i + _BATCH]), verbose=0)
                for i in range(0, len(x), _BATCH)
            ]
            np.save(self.outputs, np.concatenate(parts))
        versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        notes = {"versions": versions, "step_ratio": step_ratio}
        self.notes.write_text(json.dumps(notes), encoding="utf-8")


def scaled(task: str, images: np.ndarray) -> np.ndarray:
    """Pixels in 0…255 as the networks take them: 0…1 for digits, −1…1 for photographs."""
    if task == "mnist":
        return (images / np.float32(255)).astype(np.float32)
    return (images / np.float32(127.5) - 1).astype(np.float32)


def run_job(function: Callable[[Job], None]) -> None:
    """Runs a module's work on the job whose file is the argument of the process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    function(Job(**json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))))
