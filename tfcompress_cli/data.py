"""Arguments that name data, shared by the commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfcompress.tools.samples import Samples

DATA_HELP = """data (--data):
  digits, mnist, fashion_mnist, cifar10
             a data set by name; all but digits are read from --data-dir
  PATH.npz   arrays under the keys x_test (or x) and y_test (or y); for calibration
             x_train (or x) and y_train (or y). Labels are class numbers or targets, and
             may be left out
  PATH.npy   samples alone, without labels
  FOLDER     images (png, jpg, bmp, gif), resized to what the model takes: one folder per
             class, or all of them unlabelled
"""


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds `--data` and what belongs to it."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", required=required, metavar="DATA", help="see below")
    group.add_argument(
        "--data-dir", metavar="FOLDER", help="of the data sets; default $TFCOMPRESS_DATA"
    )
    group.add_argument("--samples", type=positive, metavar="N", help="use at most N samples")
    group.add_argument("--scale", type=float, default=1.0, help="factor on the samples (default 1)")
    group.add_argument(
        "--offset", type=float, default=0.0, help="added after the factor (default 0)"
    )
    parser.epilog = DATA_HELP


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, received {text}")
    return number


def not_negative(text: str) -> int:
    """A whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, received {text}")
    return number


def samples_for(options: argparse.Namespace, shape: tuple | None, part: str) -> Samples:
    """The samples that `options` name.

    Args:
        options: Of the command line.
        shape: Shape of a sample that the model takes, to which images of a folder are resized.
        part: `"test"` or `"train"`.
    """
    from tfcompress.tools.samples import load_samples

    return load_samples(
        options.data,
        part=part,
        data_dir=options.data_dir,
        shape=shape,
        limit=options.samples,
        scale=options.scale,
        offset=options.offset,
    )


def labels_from(path: str | None) -> Any:
    """The lines of a file of class names; `None` without one."""
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def split(given: Samples) -> tuple[Samples, Samples]:
    """Training and validation data: of the samples in random order, the last fifth."""
    import dataclasses

    import numpy as np

    order = np.random.default_rng(0).permutation(len(given.x))
    held = min(max(1, len(order) // 5), 5000)

    def part(rows: Any) -> Samples:
        y = None if given.y is None else given.y[rows]
        return dataclasses.replace(given, x=given.x[rows], y=y)

    return part(order[:-held]), part(order[-held:])


def arrays_of(samples: Samples) -> Any:
    """Samples as `fit` takes them: `(x, y)`, or `x` where there are no labels."""
    return samples.x if samples.y is None else (samples.x, samples.y)


def is_other(test: Samples, given: Samples) -> bool:
    """Whether the test data are other ones: a file without parts gives the same for both."""
    import numpy as np

    count = min(len(test.x), len(given.x), 64)
    return not np.array_equal(test.x[:count], given.x[:count])
