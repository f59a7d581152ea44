"""Takes pictures of the site and of the HTML report in a headless browser, to be looked at.

    sphinx-build -W -b html docs build/docs
    python tools/screenshots.py build/screenshots

The pages of PAGES from `build/docs`, and a report that is made here, at 1280 and 390 pixels of
width. Chromium is taken from the path: Debian and Ubuntu have it as the package `chromium`. A page
is shown in a frame, since the window of a browser has a smallest width.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("index", "start", "quantization", "results")
_HEIGHT = 2600


def report(path: pathlib.Path) -> None:
    """A comparison of a small net with its int8 copy, as a page."""
    import keras
    import numpy as np

    import tfcompress as tfc

    x = np.random.default_rng(0).normal(size=(128, 8, 8, 3)).astype("float32")
    inputs = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    y = keras.layers.Conv2D(8, 3, activation="relu", name="second")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(inputs, keras.layers.Dense(10, name="logits")(y), name="float")
    int8 = tfc.quantize(model, calibration_data=x)
    labels = model.predict(x, verbose=0).argmax(-1)
    tfc.compare({"float": model, "int8": int8}, (x, labels), runs=20).save_html(path)


def shoot(browser: str, page: pathlib.Path, width: int, picture: pathlib.Path) -> None:
    """A picture of a page, as wide as asked."""
    with tempfile.TemporaryDirectory() as folder:
        frame = pathlib.Path(folder) / "frame.html"
        frame.write_text(
            f'<body style="margin:0"><iframe src="{page.resolve().as_uri()}" '
            f'style="border:0;width:{width}px;height:{_HEIGHT}px"></iframe>',
            encoding="utf-8",
        )
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--virtual-time-budget=8000", f"--user-data-dir={folder}/profile"]
        size = f"--window-size={max(width, 500)},{_HEIGHT}"
        command = [browser, *options, size, f"--screenshot={picture.resolve()}", frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main(folder: str = "build/screenshots") -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit(
            "error: expected chromium on the path. Debian and Ubuntu: apt-get install chromium"
        )
    site = ROOT / "build" / "docs"
    if not (site / "index.html").exists():
        sys.exit(
            f"error: expected the site in {site}. Run: sphinx-build -W -b html docs build/docs"
        )
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    page = target / "report.html"
    report(page)
    for each in [*(site / f"{name}.html" for name in PAGES), page]:
        for width in (1280, 390):
            picture = target / f"{each.stem}-{width}.png"
            shoot(browser, each, width, picture)
            print(f"Written: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
