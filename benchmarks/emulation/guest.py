"""Runs `.tflite` files; needs NumPy and LiteRT only, so that it runs on an emulated phone too.

python guest.py codes TAG FOLDER...    FOLDER: model.tflite, inputs.npz → outputs_TAG.npz
python guest.py repeat FILE COUNT      runs a file on random inputs, for counting instructions
python guest.py marked COUNT FILE...   runs each file so often between two calls of sched_yield
"""

import os
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def codes(tag: str, folder: str) -> None:
    """Runs the samples of `inputs.npz` (arrays by input name) under XNNPACK, one by one."""
    interpreter = Interpreter(model_path=f"{folder}/model.tflite", num_threads=1)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    # It holds the interpreter, which then refuses to run.
    del signature
    samples = dict(np.load(f"{folder}/inputs.npz"))
    results = {name: [] for name in outputs}
    for i in range(len(next(iter(samples.values())))):
        for name, detail in inputs.items():
            interpreter.set_tensor(detail["index"], samples[name][i : i + 1])
        interpreter.invoke()
        for name, detail in outputs.items():
            results[name].append(interpreter.get_tensor(detail["index"])[0].copy())
    arrays = {name: np.stack(values) for name, values in results.items()}
    np.savez(f"{folder}/outputs_{tag}.npz", **arrays)


def repeat(path: str, count: int) -> None:
    """Runs a file `count` times under XNNPACK, on the same random inputs."""
    interpreter = ready(path)
    for _ in range(count):
        interpreter.invoke()


def marked(path: str, count: int) -> None:
    """The same, with a mark before and after; what runs only once comes before the first one."""
    interpreter = ready(path)
    for _ in range(2):
        interpreter.invoke()
    os.sched_yield()
    for _ in range(count):
        interpreter.invoke()
    os.sched_yield()


def ready(path: str) -> Interpreter:
    """An interpreter of a file with random inputs."""
    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        if detail["dtype"] == np.int8:
            values = random.integers(-128, 128, detail["shape"])
        else:
            values = random.uniform(0, 255, detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    return interpreter


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "codes":
        for each in arguments[1:]:
            codes(arguments[0], each)
    elif command == "marked":
        for each in arguments[1:]:
            marked(each, int(arguments[0]))
    else:
        repeat(arguments[0], int(arguments[1]))
