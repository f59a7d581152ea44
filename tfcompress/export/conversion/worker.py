"""The worker process: converts SavedModels and loads `.tflite` files, one job per line of input.

Run as a script, it imports TensorFlow and LiteRT and nothing of tfcompress. A conversion can leak
memory, and converter and runtime can crash; here that ends a process and not the user's session.

A job is a JSON object with a number. {"saved_model", "signatures", "output", "sparse", "weights"}
converts a SavedModel; {"load"} loads a `.tflite`. The answer is one line with the same number,
{"ok": true} or {"error": text}.
"""

import os
import sys

if __name__ == "__main__":
    # A script's own folder comes first on the path: its modules must not hide others of their
    # names.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # TensorFlow imports Keras where it finds it, and Keras imports Matplotlib, SciPy and
    # scikit-learn. The conversion of a SavedModel needs none of them, and together they take as
    # long as TensorFlow itself.
    for _name in ("keras", "tf_keras"):
        sys.modules[_name] = None  # type: ignore[assignment]

import contextlib
import io
import json


def convert(job: dict) -> bytes:
    """Converts one SavedModel."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        job["saved_model"], signature_keys=job["signatures"]
    )
    if job["sparse"]:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if job["weights"]:
        # Without ranges of activations this stores weights in int8, per channel.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job["weights"] == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def load(path: str) -> None:
    """Loads a `.tflite` and plans its memory."""
    from ai_edge_litert.interpreter import Interpreter

    Interpreter(model_path=path).allocate_tensors()


def main() -> None:
    # The converter prints to standard output, so answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Before the first job: the parent starts the worker while it still traces the model.
    import tensorflow as tf  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        try:
            if "load" in job:
                load(job["load"])
            else:
                with contextlib.redirect_stdout(io.StringIO()):
                    data = convert(job)
                with open(job["output"], "wb") as file:
                    file.write(data)
            answer: dict[str, bool | int | str] = {"ok": True}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**answer, "number": job["number"]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
