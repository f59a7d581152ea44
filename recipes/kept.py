"""Models that a recipe trains once and keeps."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras


def kept_model(path: pathlib.Path, train: Callable[[], keras.Model], seed: int = 0) -> keras.Model:
    """Returns the model in a file, uncompiled; trained and saved first where there is none.

    The file appears whole: a training or a writing that is interrupted leaves none behind.

    Args:
        path: A `.keras` file.
        train: Returns the trained model.
        seed: Of that training.
    """
    if not path.exists():
        keras.utils.set_random_seed(seed)
        partial = path.with_name(f"partial_{path.name}")
        train().save(partial)
        partial.replace(path)
    return keras.saving.load_model(path, compile=False)
