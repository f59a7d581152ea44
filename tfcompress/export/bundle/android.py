"""A Gradle library module for Android around a `.tflite`: assets, Kotlin, a test, a benchmark.

The Kotlin reads the card at run time, so that an export of the same name takes the place of the
assets alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress.export.bundle.files import Bundle, bundle_files
from tfcompress.export.files import read_tflite
from tfcompress.export.runtime.runner import Inputs
from tfcompress.files.writing import write_together

_MAIN = ("ModelCard.kt", "ModelRunner.kt", "CompiledModelRunner.kt", "InterpreterRunner.kt")
_TEST = "GoldenPairsTest.kt"
_ROOT = ("build.gradle.kts", "benchmark.sh", "README.md")
_PACKAGE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
# Names that Kotlin keeps for itself, and words that no package may have.
_KEYWORDS = {
    *("as", "break", "class", "continue", "do", "else", "false", "for", "fun", "if", "in"),
    *("interface", "is", "null", "object", "package", "return", "super", "this", "throw", "true"),
    *("try", "typealias", "typeof", "val", "var", "when", "while"),
}


def write_android(
    tflite_path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    package: str = "com.example.model",
    bundle: Bundle | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Sequence = (),
    golden_data: Inputs | Mapping[str, Inputs] | None = None,
    num_golden: int = 4,
) -> pathlib.Path:
    """Writes a Gradle library module: the file, its card and golden pairs, Kotlin and a test.

    The folder holds `src/main/assets` (file, card), `src/main/kotlin` (`ModelCard`,
    `CompiledModelRunner` and `InterpreterRunner`), `src/androidTest` (golden pairs and the test
    that replays them), `build.gradle.kts`, `benchmark.sh` for adb, and a `README.md`.

    Args:
        tflite_path: The exported file.
        folder: Where to write; new, empty, or written by an earlier call.
        package: The Kotlin package.
        bundle: The card and golden pairs beside the file, as `read_bundle` gives them. Without it
            they are made anew, of the arguments that follow.
        labels: Class names.
        preprocessing: Steps from raw data to the model's input (see `bundle.preprocessing`).
        golden_data: Samples for the golden pairs; synthetic by default.
        num_golden: Most golden samples per signature, 1 or more.

    Returns:
        The folder.

    Raises:
        ValueError: No package of that name, a folder with other files, a file that cannot be read,
            a bundle without golden pairs, or a tensor of a type that the Kotlin cannot hold.
    """
    path, folder = pathlib.Path(tflite_path), pathlib.Path(folder)
    _check_package(package)
    _check_folder(folder)
    data = read_tflite(path)
    texts = _card_and_pairs(data, path, bundle, labels, preprocessing, golden_data, num_golden)
    card = json.loads(texts["card"])
    _check_types(card)
    name = re.sub(r"\W", "_", path.stem)
    assets, kotlin = folder / "src/main/assets", pathlib.Path(*package.split("."))
    test = folder / "src/androidTest"
    # Names of assets are those of the file, but for characters that URIs and resources escape.
    contents: dict[pathlib.Path, bytes | str] = {
        assets / f"{name}.tflite": data,
        assets / f"{name}.json": texts["card"],
        test / "assets" / f"{name}.golden.json": texts["pairs"],
        folder / "src/main/AndroidManifest.xml": "<manifest />\n",
    }
    values = _values(card, name, package)
    for template in _MAIN:
        contents[folder / "src/main/kotlin" / kotlin / template] = _filled(template, values)
    contents[test / "kotlin" / kotlin / _TEST] = _filled(_TEST, values)
    for template in _ROOT:
        contents[folder / template] = _filled(template, values)
    if card["labels"]:
        contents[assets / f"{name}.labels.txt"] = "\n".join(card["labels"]) + "\n"
    for file in contents:
        file.parent.mkdir(parents=True, exist_ok=True)
    ours = (*_MAIN, _TEST)
    earlier = [p for p in folder.rglob("*.kt") if p.name in ours and p not in contents]
    write_together(contents, earlier)
    (folder / "benchmark.sh").chmod(0o755)
    return folder


def _card_and_pairs(
    data: bytes,
    path: pathlib.Path,
    bundle: Bundle | None,
    labels: Sequence[str] | None,
    preprocessing: Sequence,
    golden_data: Any,
    num_golden: int,
) -> dict[str, str]:
    if num_golden < 1:
        raise ValueError(
            f"Expected num_golden of 1 or more, for the test to replay. Received: {num_golden}."
        )
    if bundle is not None:
        if bundle.golden is None:
            raise ValueError(
                "Expected a bundle with golden pairs. Received: one that was written with none."
            )
        card = json.dumps(bundle.metadata, indent=2, ensure_ascii=False) + "\n"
        return {"card": card, "pairs": json.dumps(bundle.golden) + "\n"}
    files = bundle_files(
        data,
        path,
        preprocessing=preprocessing,
        labels=labels,
        golden_data=golden_data,
        num_golden=num_golden,
    )
    return {
        "card": files[path.with_suffix(".json")],
        "pairs": files[path.with_suffix(".golden.json")],
    }


def _check_package(package: str) -> None:
    words = package.split(".") if isinstance(package, str) else []
    if not words or not _PACKAGE.fullmatch(package) or _KEYWORDS & set(words):
        raise ValueError(
            "Expected a Kotlin package of two words or more, such as 'com.example.model'. "
            f"Received: {package!r}."
        )


def _check_types(card: Mapping) -> None:
    known = ("int8", "uint8", "int32", "float32", "bool")
    other = {
        tensor["name"]: tensor["dtype"]
        for signature in card["signatures"]
        for tensor in (*signature["inputs"], *signature["outputs"])
        if tensor["dtype"] not in known
    }
    if other:
        raise ValueError(f"Expected inputs and outputs of the types {known}. Received: {other}.")


def _check_folder(folder: pathlib.Path) -> None:
    """Refuses to write among files that are not of an earlier call."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected a folder to write. Received: the file {str(folder)!r}.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "benchmark.sh").is_file():
        raise ValueError(
            f"Expected a new or an empty folder. Received: {str(folder)!r}, with files in it."
        )


def _values(card: Mapping, name: str, package: str) -> dict[str, str]:
    keys = [signature["key"] for signature in card["signatures"]]
    version = card["versions"].get("ai-edge-litert") or importlib.metadata.version("ai-edge-litert")
    return {
        "PACKAGE": package,
        "MODEL": name,
        "MODULE": package.rpartition(".")[2],
        "LITERT": version,
        "BYTES": f"{card['file']['bytes']:,}",
        "SIGNATURE": "" if len(keys) == 1 else json.dumps(keys[0]),
        "TENSORS": _tensors(card),
        "PREPROCESSING": _preprocessing(card),
    }


def _tensors(card: Mapping) -> str:
    rows = [
        "| signature | tensor | | shape | type | scale | zero point |",
        "|---|---|---|---|---|---|---|",
    ]
    for signature in card["signatures"]:
        for kind in ("inputs", "outputs"):
            for tensor in signature[kind]:
                scale, point = tensor["scale"], tensor["zero_point"]
                rows.append(
                    f"| {signature['key'] or ''} | `{tensor['name']}` | {kind[:-1]} "
                    f"| {'×'.join(map(str, tensor['shape']))} | {tensor['dtype']} "
                    f"| {'–' if scale is None else f'{scale:.8g}'} "
                    f"| {'–' if point is None else point} |"
                )
    return "\n".join(rows)


def _preprocessing(card: Mapping) -> str:
    if not card["preprocessing"]:
        return "The card names no preprocessing: inputs are the values that the Keras model takes."
    steps = [f"{i}. `{json.dumps(step)}`" for i, step in enumerate(card["preprocessing"], 1)]
    return "From raw data to the input:\n\n" + "\n".join(steps)


def _filled(template: str, values: Mapping[str, str]) -> str:
    folder = importlib.resources.files("tfcompress.export.bundle") / "templates"
    text = (folder / template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)
