"""The description of a tf_keras model: of a live one here, of a file in another process."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import keras
import numpy as np

from tfcompress.compat.tfmot import describe

_INSTALL = 'pip install "tfcompress[tfmot]"'


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe.Describer` says of a model.

    Attributes:
        model: The description, in JSON's types.
        arrays: The arrays that it names.
    """

    model: dict[str, Any]
    arrays: dict[str, np.ndarray]


def read(model: Any) -> Description:
    """Describes a tf_keras model.

    Args:
        model: The model, or the path of a file of it: `.h5`, `.keras` or a SavedModel's folder.

    Raises:
        TypeError: Something else.
        ValueError: A model without a graph of layers, or a file that cannot be loaded.
        ImportError: A file, where tf_keras is not installed.
    """
    if isinstance(model, str | os.PathLike):
        return _read_file(pathlib.Path(model))
    modules = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    if "tf_keras" not in modules:
        hint = "It needs no migration." if isinstance(model, keras.Model) else ""
        raise TypeError(
            "Expected a model of tf_keras, the legacy Keras that tfmot works on, or the path of "
            f"its file. Received: {model!r} of type {type(model)}. {hint}".rstrip()
        )
    if "Model" not in {cls.__name__ for cls in type(model).__mro__}:
        raise TypeError(
            f"Expected a model. Received: the layer {model.name!r} of type {type(model).__name__}. "
            "Put it into a tf_keras.Sequential and build that."
        )
    describer = describe.Describer()
    try:
        content = describer.model(model)
    except describe.CannotDescribe as error:
        raise ValueError(str(error)) from error
    return Description(content, describer.arrays)


def _read_file(path: pathlib.Path) -> Description:
    """Loads a file in a process of its own, in which `tf.keras` may become the legacy Keras."""
    if not path.exists():
        raise ValueError(f"Expected a file of tf_keras. Received: {str(path)!r}, which is missing.")
    if importlib.util.find_spec("tf_keras") is None:
        raise ImportError(f"Expected tf_keras, to load {str(path)!r}. Not installed: {_INSTALL}.")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(
            [sys.executable, describe.__file__, str(path.resolve()), folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(
                f"Expected a file that tf_keras loads. Received: {str(path)!r}, on which it ended "
                f"with code {done.returncode}: {last}"
            )
        text = pathlib.Path(folder, describe.DESCRIPTION).read_text(encoding="utf-8")
        content = json.loads(text)
        with np.load(pathlib.Path(folder, describe.ARRAYS)) as file:
            arrays = {name: file[name] for name in file.files}
    if "error" in content:
        raise ValueError(
            f"Expected a file that tf_keras loads. Received: {str(path)!r}: {content['error']}"
            f"{_hint()}"
        )
    return Description(content["model"], arrays)


def _hint() -> str:
    """What may be missing where a file does not load."""
    hints = "Files with classes of your own load in your own process: pass the live model."
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        hints += f" Files with wrappers of tfmot need it: {_INSTALL}."
    return f". {hints}"
