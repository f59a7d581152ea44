"""Samples with or without labels: a data set by name, arrays in a file, or a folder of images."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
import zlib

import numpy as np

from tfcompress.tools import datasets

#: What NumPy and `zipfile` raise for damaged files: also for what seems encrypted (`RuntimeError`),
#: packed in an unknown way (`NotImplementedError` is one), or larger than the memory.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error),
)
#: Endings of images in a folder.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples to calibrate, evaluate or compare on.

    Attributes:
        x: Array of shape `(n, …)`.
        y: Class numbers of shape `(n,)`, or targets of shape `(n, …)`; `None` where there are none.
        class_names: Class number → name, for a folder with one folder per class; else `None`.
    """

    x: np.ndarray
    y: np.ndarray | None
    class_names: list[str] | None = None


def load_samples(
    source: str | os.PathLike,
    *,
    part: str = "test",
    data_dir: str | os.PathLike | None = None,
    shape: tuple[int | None, ...] | None = None,
    limit: int | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Samples:
    """Reads samples.

    Args:
        source: A name in `datasets.NAMES`; the path of an `.npz` with the keys `x_test` or `x` (for
            `part="train"`: `x_train` or `x`) and, if there are labels, `y_test`, `y_train` or `y`;
            the path of an `.npy` with samples; or a folder of images, with a folder per class or
            unlabelled.
        part: `"test"` or `"train"`. A folder with folders `test` and `train` in it has both.
        data_dir: Folder of the data sets by name.
        shape: `(height, width, channels)` to which images of a folder are resized.
        limit: Most samples. Of a folder, a random choice; else the first.
        scale: Factor on the samples.
        offset: What is added after the factor.

    Returns:
        The samples; images without a channel axis get one, and are float32.

    Raises:
        ValueError: If there is no such data, or it does not fit.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        found = _images(path, part, shape, limit)
    elif path.suffix in (".npz", ".npy"):
        found = _arrays(path, part)
    else:
        train, test = datasets.load(os.fspath(source), data_dir)
        found = Samples(*(train if part == "train" else test))
    x = found.x[:limit]
    y = None if found.y is None else found.y[:limit]
    if (scale, offset) != (1.0, 0.0):
        x = (x * np.float32(scale) + np.float32(offset)).astype(np.float32)
    return Samples(x, y, found.class_names)


def _arrays(path: pathlib.Path, part: str) -> Samples:
    other = {"test": "train", "train": "test"}[part]
    keys = [(f"x_{p}", f"y_{p}") for p in (part, other)]
    keys.insert(1, ("x", "y"))
    if not path.is_file():
        raise ValueError(
            f"Expected a file of arrays. Received: {str(path)!r}, which does not exist. Store it "
            f"with numpy.savez_compressed, under the keys {keys[0][0]} and {keys[0][1]}"
        )
    try:
        # NumPy leaves a damaged file open that it has opened itself.
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return Samples(_floats(content), None)
            names = list(content.files)
            found = next((pair for pair in keys if pair[0] in names), None)
            x, y = (content[key] if key in names else None for key in found or ("", ""))
    except _DAMAGED as error:
        raise ValueError(
            f"Expected a whole file of NumPy arrays. Received: {str(path)!r}: {error}. "
            "Store it again"
        ) from error
    if x is None:
        raise ValueError(
            f"Expected samples under one of the keys {', '.join(name for name, _ in keys)}. "
            f"Received: {str(path)!r} with {', '.join(names)}. Store the arrays under these names"
        )
    return Samples(_floats(x), _labels(x, y, path))


def _floats(x: np.ndarray) -> np.ndarray:
    """Images and real numbers as float32; whole numbers (tokens) as int32."""
    if x.dtype == np.uint8:
        return (x[..., None] if x.ndim == 3 else x).astype(np.float32)
    return x.astype(np.int32 if x.dtype.kind in "iu" else np.float32)


def _labels(x: np.ndarray, y: np.ndarray | None, path: pathlib.Path) -> np.ndarray | None:
    if y is None:
        return None
    if len(y) != len(x):
        raise ValueError(
            f"Expected one label per sample, {len(x)}. Received: {str(path)!r} with {len(y)}"
        )
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "iu":
        y = y[:, 0]
    return y.astype(np.int32) if y.dtype.kind in "iub" else y.astype(np.float32)


def _images(
    folder: pathlib.Path, part: str, shape: tuple[int | None, ...] | None, limit: int | None
) -> Samples:
    import tensorflow as tf

    if (folder / part).is_dir():
        folder = folder / part
    if shape is None or len(shape) != 3 or None in shape or shape[2] not in (1, 3, 4):
        raise ValueError(
            "Expected a model with an input of (height, width, channels) of known size, to resize "
            f"images to. Received: {shape}. Pass the samples as an .npz"
        )
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    groups = [_files(p) for p in classes] if classes else [_files(folder)]
    entries = [(path, number) for number, group in enumerate(groups) for path in group]
    if not entries:
        raise ValueError(
            f"Expected images ({', '.join(IMAGES)}), or folders of them. Received: {str(folder)!r} "
            "without any"
        )
    if limit is not None and limit < len(entries):
        chosen = np.random.default_rng(0).permutation(len(entries))[:limit]
        entries = [entries[i] for i in sorted(chosen)]
    height, width, channels = shape
    images = []
    for path, _ in entries:
        try:
            image = tf.io.decode_image(path.read_bytes(), channels, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"Expected an image. Received: {str(path)!r}, which cannot be decoded. Remove it"
            ) from error
        images.append(tf.image.resize(image, (height, width), antialias=True).numpy())
    x = np.stack(images).astype(np.float32)
    if not classes:
        return Samples(x, None)
    labels = np.array([number for _, number in entries], np.int32)
    return Samples(x, labels, [p.name for p in classes])


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
