"""The trained nets of `benchmarks.search`, each with data for training, validation and testing."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks.low_bits_parts import mobilenet
from benchmarks.tasks import data
from recipes import models
from recipes.batches import augmented
from tfcompress.tools import datasets

Split = tuple[np.ndarray, np.ndarray]

#: Of Adam, at the beginning of the cosine; that of the float nets' own training.
RATE = 3e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A trained float model and its data.

    Attributes:
        name: Of the net.
        model: Compiled.
        train: Samples that give sensitivities and ranges where nothing trains.
        batches: Seed → the same samples for training: photographs are flipped and shifted.
        validation: Other samples, which decide.
        test: Samples that nothing else sees.
    """

    name: str
    model: keras.Model
    train: Split
    batches: Callable[[int], Any]
    validation: Split
    test: Split


def load(name: str, path: pathlib.Path, data_dir: str | None) -> Net:
    """A net by its name.

    Args:
        name: `"resnet8"` or `"mobilenet"` on CIFAR-10, `"spotter"` on spoken digits.
        path: The `.keras` file; a net without a file is trained and kept there.
        data_dir: Folder of the data sets.
    """
    train, test = _SPLITS[name](data_dir)
    if not path.is_file():
        if name == "resnet8":
            raise ValueError(f"Expected a trained ResNet-8 as --model. Received: {str(path)!r}.")
        _TRAINING[name](path, train, data_dir)
    model = keras.saving.load_model(path, compile=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    order = np.random.default_rng(0).permutation(len(train[1]))
    held = min(5000, len(order) // 5)
    first, second = ((train[0][rows], train[1][rows]) for rows in (order[:-held], order[-held:]))

    def batches(seed: int) -> Any:
        return first if name == "spotter" else augmented(*first, seed)

    return Net(name, model, first, batches, second, test)


def _pictures(data_dir: str | None) -> tuple[Split, Split]:
    return datasets.load("cifar10", data_dir)


def _clips(data_dir: str | None) -> tuple[Split, Split]:
    first, second = (
        (split.inputs[0][..., None], np.asarray(split.targets))
        for split in data.spoken_digits(data_dir)
    )
    return first, second


def _train_spotter(path: pathlib.Path, train: Split, data_dir: str | None) -> None:
    keras.utils.set_random_seed(0)
    x, y = train
    model = models.build("ds_cnn", x.shape[1:], 10)
    steps = 40 * (len(y) // 64)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(x, y, batch_size=64, epochs=40, verbose=0)
    model.save(path)


def _train_mobilenet(path: pathlib.Path, train: Split, data_dir: str | None) -> None:
    mobilenet.trained_float(path, data_dir)


_SPLITS: dict[str, Callable[[str | None], tuple[Split, Split]]] = {
    "resnet8": _pictures,
    "mobilenet": _pictures,
    "spotter": _clips,
}
_TRAINING = {"spotter": _train_spotter, "mobilenet": _train_mobilenet}
#: Names of the nets.
NETS = tuple(_SPLITS)
