"""Loading Keras models from files that may be anything."""

from __future__ import annotations

import os
import pathlib
import warnings
import zipfile

import keras

#: Endings of files that Keras loads.
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def load_model(path: str | os.PathLike, *, compiled: bool = False) -> keras.Model:
    """Loads a `.keras` or `.h5` file in safe mode: no code of it runs.

    Args:
        path: The file.
        compiled: Whether with the loss and the metrics that it was compiled with, if it was.

    Raises:
        ValueError: If there is no such file, it is of another kind, or Keras cannot load it, or
            with `compiled` its loss, metrics or optimizer.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(
            f"Expected a model file. Received: {str(path)!r}, which does not exist. Check the path"
        )
    if path.suffix not in KERAS_SUFFIXES or path.is_dir():
        raise ValueError(
            f"Expected a .keras or .h5 file. Received: {str(path)!r}. Save the model with "
            "model.save('model.keras')"
        )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"Expected a whole .keras file. Received: {str(path)!r} of {path.stat().st_size} "
            "bytes, which is no zip archive. It is truncated or damaged: save it or fetch it again"
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise ValueError(
            f"Expected a model that Keras can load. Received: {str(path)!r}: {_shown(error)}. Save "
            "it again with model.save('model.keras')"
        ) from error
    if compiled:
        model = _compiled(path)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"Expected a built Keras model. Received: {str(path)!r} with {type(model).__name__}. "
            "Call the model on data once before saving it"
        )
    return model


def _compiled(path: pathlib.Path) -> keras.Model:
    """A model that loads, with what it was compiled with."""
    try:
        with warnings.catch_warnings():
            # State of the optimizer that Keras does not find: another one trains.
            warnings.simplefilter("ignore", UserWarning)
            return keras.saving.load_model(path, compile=True, safe_mode=True)
    except Exception as error:
        raise ValueError(
            f"Expected a loss, metrics and an optimizer that Keras can load. Received: "
            f"{str(path)!r}: {_shown(error)}. Compile it with those of Keras and save it as "
            ".keras, or load it in Python with custom_objects= and call tfc.search or Recipe.run"
        ) from error


def _shown(error: Exception) -> str:
    text = str(error).partition(" Full object config")[0]
    return f"{type(error).__name__}: {text.rstrip('. ')}"


def sample_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """Shape of a sample of the first input, without the batch; `None` where it is not known."""
    inputs = getattr(model, "inputs", None)
    return tuple(inputs[0].shape[1:]) if inputs else None
