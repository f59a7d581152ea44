"""Small image data sets for recipes, tools and benchmarks.

| name            | images (float32)       | where they come from                             |
|-----------------|------------------------|--------------------------------------------------|
| `digits`        | n, 8, 8, 1 in 0..1     | bundled with scikit-learn; 1437 train, 360 test  |
| `mnist`         | n, 28, 28, 1 in 0..255 | `mnist.npz`, as `keras.datasets.mnist` stores it |
| `fashion_mnist` | n, 28, 28, 1 in 0..255 | `fashion_mnist.npz` with the same keys           |
| `cifar10`       | n, 32, 32, 3 in 0..255 | `cifar10.npz` or else `cifar10_jpeg.npz`         |
| `PATH.npz`      | as stored              | your own file with the same keys                 |

The keys are `x_train`, `y_train`, `x_test`, `y_test`. `cifar10_jpeg.npz` holds the images as JPEG
instead: `jpg_train` (the files one after another, uint8), `off_train` (where each begins and the
last ends), and the same for the test. Results on it are not those on the true pixels: name it.
"""

from __future__ import annotations

import itertools
import os
import pathlib

import numpy as np

Split = tuple[np.ndarray, np.ndarray]

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_NUM_TRAINING_DIGITS = 1437


def load(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> tuple[Split, Split]:
    """Returns `(x_train, y_train), (x_test, y_test)`.

    Args:
        name: One of `NAMES`, or the path of an `.npz`. In a file of your own, uint8 images
            without a channel axis get one; all else stays in shape.
        data_dir: Folder with the files; by default the environment variable `TFCOMPRESS_DATA`.

    Returns:
        Images as float32 on the scale of the table above, labels as int32 of shape `(n,)`.

    Raises:
        ValueError: If the name is unknown, a file is missing, or its content does not fit.
    """
    name = os.fspath(name)
    if name == "digits":
        return _digits()
    if name.endswith(".npz"):
        return _arrays(_existing(pathlib.Path(name), name))
    if name not in NAMES:
        raise ValueError(
            f"Expected one of {', '.join(NAMES)}, or the path of an .npz file. "
            f"Received: {name!r}. Choose one, or store your data with the keys {', '.join(_KEYS)}"
        )
    folder = _folder(name, data_dir)
    jpeg = folder / "cifar10_jpeg.npz"
    if name == "cifar10" and jpeg.is_file() and not (folder / "cifar10.npz").is_file():
        return _jpegs(jpeg, "train"), _jpegs(jpeg, "test")
    return _arrays(_existing(folder / f"{name}.npz", name))


def _digits() -> tuple[Split, Split]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "Expected scikit-learn, which holds the data set. Received: an environment without "
            'it. Install it: pip install "tfcompress[recipes]"'
        ) from error
    data = load_digits()
    x = (data.images[..., None] / 16.0).astype(np.float32)
    y = data.target.astype(np.int32)
    split = _NUM_TRAINING_DIGITS
    return (x[:split], y[:split]), (x[split:], y[split:])


def _folder(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    folder = data_dir if data_dir is not None else os.environ.get("TFCOMPRESS_DATA")
    if not folder:
        raise ValueError(
            f"Expected the folder that holds {name}.npz. Received: data_dir=None, and the "
            f"environment variable TFCOMPRESS_DATA is not set. Set one of them. {_source(name)}"
        )
    return pathlib.Path(folder)


def _existing(path: pathlib.Path, name: str) -> pathlib.Path:
    if not path.is_file():
        raise ValueError(
            f"Expected a file with the keys {', '.join(_KEYS)}. Received: {str(path)!r}, which "
            f"does not exist. {_source(name)}"
        )
    return path


def _source(name: str) -> str:
    if name not in NAMES:
        return "Store it with numpy.savez_compressed"
    lines = [
        f"To make the file: numpy.savez_compressed('{name}.npz', x_train=…, y_train=…, x_test=…, "
        f"y_test=…) with the arrays of keras.datasets.{name}.load_data()"
    ]
    if name == "cifar10":
        lines.append("or put a cifar10_jpeg.npz there")
    return ", ".join(lines)


def _arrays(path: pathlib.Path) -> tuple[Split, Split]:
    with np.load(path) as data:
        missing = [key for key in _KEYS if key not in data.files]
        if missing:
            raise ValueError(
                f"Expected the keys {', '.join(_KEYS)}. Received: {str(path)!r} with "
                f"{', '.join(data.files)}. Store the arrays under these names"
            )
        x_train, y_train, x_test, y_test = (data[key] for key in _KEYS)
    return _split(x_train, y_train, path), _split(x_test, y_test, path)


def _split(x: np.ndarray, y: np.ndarray, path: pathlib.Path) -> Split:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"Expected one label per sample, of shape ({len(x)},). Received: {str(path)!r} with "
            f"labels of shape {y.shape}. Store class numbers"
        )
    if x.dtype == np.uint8 and x.ndim == 3:
        x = x[..., None]
    return x.astype(np.float32), y.astype(np.int32)


def _jpegs(path: pathlib.Path, split: str) -> Split:
    import tensorflow as tf

    with np.load(path) as data:
        blob = data[f"jpg_{split}"].tobytes()
        offsets, labels = data[f"off_{split}"], data[f"y_{split}"]
    files = [blob[begin:end] for begin, end in itertools.pairwise(offsets)]

    def decode(file):
        return tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")

    images = tf.data.Dataset.from_tensor_slices(files)
    images = images.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(1000)
    return _split(np.concatenate(list(images.as_numpy_iterator())), labels, path)
