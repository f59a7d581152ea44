"""Real data of the nets, and what is derived from it: masks, boxes, pairs, moving digits, text.

Pictures are those of `tfcompress.tools.datasets`, spoken digits those of the Free Spoken Digit
Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) as `fsdd.npz`: `x`,
int16 clips of one second at 8 kHz, `y`, their digit, and `index`, below 5 for the official test
split. Text is the source of Python's standard library.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import re
import sysconfig

import numpy as np

from benchmarks.tasks.task import Split
from tfcompress.tools import datasets

Pair = tuple[Split, Split]

#: Frames and mel bands of a spoken digit.
FRAMES, BANDS = 16, 20
_RATE, _LENGTH, _HOP = 8000, 512, 500


@functools.lru_cache(maxsize=4)
def _pictures(name: str, data_dir: str | None) -> tuple[datasets.Split, datasets.Split]:
    (x, y), (x_test, y_test) = datasets.load(name, data_dir)
    return (x.astype(np.uint8), y), (x_test.astype(np.uint8), y_test)


def pictures(name: str, count: int, test: int, data_dir: str | None) -> Pair:
    """The first pictures of a data set, float32 in 0..255, and their classes."""
    (x, y), (x_test, y_test) = _pictures(name, data_dir)
    return (
        Split([x[:count].astype(np.float32)], y[:count]),
        Split([x_test[:test].astype(np.float32)], y_test[:test]),
    )


def pictures_of(name: str, classes: range, count: int, test: int, data_dir: str | None) -> Pair:
    """The first pictures of some classes, which are numbered from 0."""
    splits = []
    for (x, y), size in zip(_pictures(name, data_dir), (count, test), strict=True):
        chosen = np.flatnonzero(np.isin(y, list(classes)))[:size]
        splits.append(Split([x[chosen].astype(np.float32)], y[chosen] - classes.start))
    return splits[0], splits[1]


# --- spoken digits ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _clips(data_dir: str | None) -> tuple[datasets.Split, datasets.Split]:
    folder = data_dir if data_dir is not None else os.environ.get("TFCOMPRESS_DATA")
    path = pathlib.Path(folder or ".") / "fsdd.npz"
    if not path.is_file():
        raise ValueError(
            f"Expected a folder with fsdd.npz. Received: {folder!r}. Pass --data_dir, or set "
            "TFCOMPRESS_DATA."
        )
    with np.load(path) as file:
        x, y, is_test = file["x"], file["y"].astype(np.int32), file["index"] < 5
    return (x[~is_test], y[~is_test]), (x[is_test], y[is_test])


def _mel_filters() -> np.ndarray:
    """Triangles over the bins of a spectrum, (bins, bands), evenly spaced in mel."""
    top = 2595 * np.log10(1 + _RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_LENGTH, 1 / _RATE)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _frames(clips: np.ndarray) -> np.ndarray:
    """Frames of 64 ms, one every 62.5 ms, (clips, frames, samples)."""
    padded = np.pad(clips.astype(np.float32), ((0, 0), (0, _LENGTH)))
    return np.stack([padded[:, t * _HOP : t * _HOP + _LENGTH] for t in range(FRAMES)], axis=1)


def spoken_digits(data_dir: str | None) -> Pair:
    """Logarithms of mel spectra, (clips, frames, bands), about −1.5 to 2.5, and the digit."""
    filters, window = _mel_filters(), np.hanning(_LENGTH)
    splits = []
    for clips, digits in _clips(data_dir):
        power = np.abs(np.fft.rfft(_frames(clips) / 2**15 * window)) ** 2
        logarithm = np.log(power @ filters + 1e-3)
        splits.append(Split([((logarithm + 3.0) / 3.0).astype(np.float32)], digits))
    return splits[0], splits[1]


def sensor(data_dir: str | None) -> Pair:
    """What a sensor's driver would give for each frame of a clip, in units of its own.

    Amplitudes (root mean square and peak, up to 32768), shares (zero crossings and flatness of the
    spectrum, 0 to 1) and frequencies (centroid and bandwidth, in Hz): (clips, frames, 2) each.
    """
    splits, hertz = [], np.fft.rfftfreq(_LENGTH, 1 / _RATE)
    for clips, digits in _clips(data_dir):
        frames = _frames(clips)
        power = np.abs(np.fft.rfft(frames * np.hanning(_LENGTH))) ** 2 + 1.0
        total = power.sum(-1)
        centroid = (power @ hertz) / total
        width = np.sqrt(((hertz - centroid[..., None]) ** 2 * power).sum(-1) / total)
        amplitudes = (np.sqrt(np.mean(frames**2, -1)), np.abs(frames).max(-1))
        crossings = np.mean(np.diff(np.sign(frames), axis=-1) != 0, -1)
        flatness = np.exp(np.mean(np.log(power), -1)) / np.mean(power, -1)
        groups = (amplitudes, (crossings, flatness), (centroid, width))
        splits.append(Split([np.stack(g, -1).astype(np.float32) for g in groups], digits))
    return splits[0], splits[1]


def sensor_joined(data_dir: str | None) -> Pair:
    """The same features as one array, (clips, frames, 6)."""
    train, test = sensor(data_dir)
    return (
        Split([np.concatenate(train.inputs, -1)], train.targets),
        Split([np.concatenate(test.inputs, -1)], test.targets),
    )


# --- pictures with digits on them ------------------------------------------------------------


def strokes(data_dir: str | None) -> Pair:
    """Photographs of 32×32 with a digit drawn on each; targets: its strokes, (32, 32, 1)."""
    splits = []
    sizes = ((3000, 0), (500, 1))
    for seed, (count, part) in enumerate(sizes):
        random = np.random.default_rng(seed)
        photographs = _pictures("cifar10", data_dir)[part][0][:count].astype(np.float32)
        digits = _pictures("mnist", data_dir)[part][0][:count].astype(np.float32) / 255
        alpha = np.zeros((count, 32, 32, 1), np.float32)
        for i, (row, column) in enumerate(random.integers(0, 5, (count, 2))):
            alpha[i, row : row + 28, column : column + 28] = digits[i]
        colour = random.uniform(0, 255, (count, 1, 1, 3))
        images = photographs * (1 - alpha) + colour * alpha
        masks = (alpha > 0.5).astype(np.float32)
        splits.append(Split([np.round(images).astype(np.float32)], masks))
    return splits[0], splits[1]


def super_resolution(data_dir: str | None) -> Pair:
    """Luminance of photographs at half their size, in 0..255; targets: the full one, in 0..1."""
    splits = []
    for part, count in enumerate((6000, 500)):
        photographs = _pictures("cifar10", data_dir)[part][0][:count].astype(np.float32)
        full = photographs @ np.float32([[0.299], [0.587], [0.114]])
        half = full.reshape(count, 16, 2, 16, 2, 1).mean((2, 4))
        splits.append(Split([np.round(half)], full / np.float32(255)))
    return splits[0], splits[1]


def reconstruction(data_dir: str | None) -> Pair:
    """Digits in 0..255; targets: themselves in 0..1."""
    splits = pictures("mnist", 8000, 1000, data_dir)
    train, test = (Split(s.inputs, s.inputs[0] / np.float32(255)) for s in splits)
    return train, test


def pairs(data_dir: str | None) -> Pair:
    """Two digits each, half of the pairs of one class; targets: whether they are."""
    splits = []
    for seed, (part, count) in enumerate(((0, 8000), (1, 1000))):
        random = np.random.default_rng(seed)
        x, y = _pictures("mnist", data_dir)[part]
        members = [np.flatnonzero(y == digit) for digit in range(10)]
        same = random.integers(0, 2, count)
        first = random.integers(0, len(x), count)
        digits = np.where(same, y[first], (y[first] + random.integers(1, 10, count)) % 10)
        second = np.array([random.choice(members[digit]) for digit in digits])
        inputs = [x[first].astype(np.float32), x[second].astype(np.float32)]
        splits.append(Split(inputs, same[:, None].astype(np.float32)))
    return splits[0], splits[1]


def moving_digits(data_dir: str | None) -> Pair:
    """A digit that moves in one of eight directions: (8, 24, 24, 1) in 0..255; targets: which."""
    splits = []
    directions = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
    for seed, (part, count) in enumerate(((0, 2400), (1, 500))):
        random = np.random.default_rng(seed)
        digits = _pictures("mnist", data_dir)[part][0][:count, ::2, ::2]
        clips = np.zeros((count, 8, 24, 24, 1), np.float32)
        classes = random.integers(0, 8, count)
        for i, direction in enumerate(classes):
            moves = np.array(directions[direction])
            begin = np.where(moves == 1, random.integers(0, 4, 2), random.integers(7, 11, 2))
            begin = np.where(moves == 0, random.integers(0, 11, 2), begin)
            for t in range(8):
                row, column = begin + t * moves
                clips[i, t, row : row + 14, column : column + 14] = digits[i]
        splits.append(Split([clips], classes.astype(np.int32)))
    return splits[0], splits[1]


# --- text ------------------------------------------------------------------------------------

#: Packages of the standard library: the classes.
PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
#: Numbers of words, of padding, of a word that is not known and of the start, and words.
VOCABULARY, PADDING, UNKNOWN, START, WORDS = 1000, 0, 1, 2, 24


def passages(data_dir: str | None) -> Pair:
    """Which package of Python's standard library 8 to 23 words of source are from.

    Words are numbered by how common they are in the training split. Every fifth passage of a file
    is for the test.
    """
    del data_dir
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    random = np.random.default_rng(0)
    found: tuple[list, list] = ([], [])
    for label, package in enumerate(PACKAGES):
        for path in sorted((library / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore").lower()
            words = re.findall(r"[a-z]{2,}", text)
            begin = 0
            for number in range(len(words)):
                length = int(random.integers(8, WORDS))
                if begin + length > len(words):
                    break
                found[number % 5 == 0].append((words[begin : begin + length], label))
                begin += length
    counts = collections.Counter(word for words, _ in found[0] for word in words)
    common = [word for word, _ in counts.most_common(VOCABULARY - 3)]
    numbers = {word: i + 3 for i, word in enumerate(common)}
    splits = []
    for samples, most in zip(found, (6000, 1000), strict=True):
        tokens = np.full((len(samples), WORDS), PADDING, np.int32)
        tokens[:, 0] = START
        for i, (words, _) in enumerate(samples):
            tokens[i, 1 : len(words) + 1] = [numbers.get(word, UNKNOWN) for word in words]
        order = random.permutation(len(samples))[:most]
        labels = np.array([label for _, label in samples], np.int32)
        splits.append(Split([tokens[order]], labels[order]))
    return splits[0], splits[1]
