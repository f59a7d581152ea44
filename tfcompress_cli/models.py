"""Arguments that name model files, and models from them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def named_paths(arguments: Sequence[str]) -> dict[str, pathlib.Path]:
    """`["a.keras", "int8=b.tflite"]` → `{"a.keras": Path("a.keras"), "int8": Path("b.tflite")}`.

    Raises:
        ValueError: Two models of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        # A path may hold the sign itself.
        if not path or pathlib.Path(argument).exists():
            name, path = "", argument
        name = name or (pathlib.Path(path).name if pathlib.Path(path).name not in found else path)
        if name in found:
            raise ValueError(
                f"Expected a name of its own for each model. Received: {name!r} "
                "twice. Write NAME=PATH"
            )
        found[name] = pathlib.Path(path)
    return found


def trained_model(path: str) -> keras.Model:
    """The Keras model of a `.keras` or `.h5` file or of a SavedModel.

    A SavedModel of the legacy Keras (2, tf_keras) is read by that and becomes a model of Keras 3,
    quantized where tfmot quantized it, and so does an `.h5` file that Keras 3 does not load.

    Raises:
        ValueError: There is no such file, or no model can be made of it.
    """
    from tfcompress.model.loading import load_model

    folder = pathlib.Path(path)
    if not folder.is_dir():
        try:
            return load_model(path)
        except ValueError:
            if folder.suffix not in (".h5", ".hdf5") or not _has_legacy_keras():
                raise
            return _of_legacy_keras(path)
    if not (folder / "saved_model.pb").is_file():
        raise ValueError(
            f"Expected a .keras or .h5 file, or the folder of a SavedModel. Received: {path!r}, a "
            "folder without saved_model.pb"
        )
    if not (folder / "keras_metadata.pb").is_file():
        raise ValueError(
            f"Expected a SavedModel that the legacy Keras wrote, which names its layers. Received: "
            f"{path!r}, which holds functions alone, as model.export and tf.saved_model.save write "
            "it: no layer of it can be quantized. Save the model with model.save('model.keras')"
        )
    if not _has_legacy_keras():
        raise ValueError(
            f"Expected tf_keras, to read the SavedModel {path!r}. It is not installed: pip install "
            "tf_keras. Or save the model with model.save('model.h5') where it was made"
        )
    return _of_legacy_keras(path)


def _has_legacy_keras() -> bool:
    import importlib.util

    return importlib.util.find_spec("tf_keras") is not None


def _of_legacy_keras(path: str) -> keras.Model:
    import tfcompress as tfc

    try:
        return tfc.from_tfmot(path)
    except (ImportError, TypeError) as error:
        raise ValueError(str(error)) from error
