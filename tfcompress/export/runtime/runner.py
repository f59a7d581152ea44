"""Runs a `.tflite` as a phone does: by LiteRT with XNNPACK, one sample at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfcompress.export.files import PathOrBytes, read_tflite
from tfcompress.export.runtime.codes import (
    TensorInfo,
    cast_integers,
    dequantize,
    quantize,
    random_codes,
)
from tfcompress.files.input_codes import input_codes
from tfcompress.files.loading import UnusableFile, check_loads

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


class Runner:
    """One signature of a `.tflite`, ready to run.

    Inputs are one array (for one input), a list in the order of `input_names`, or a dict by
    name; each has a batch of any size in front, which is run sample by sample. Floating-point
    arrays are quantized where the input is quantized; integer arrays are taken as codes. Where a
    Rescaling is folded into an input, its scale and zero point here are those of the values that
    the Keras model takes, such as pixels of 0 to 255.

    Args:
        path_or_bytes: Path of a `.tflite` file, or its bytes.
        num_threads: Threads of XNNPACK, 1 or more.
        signature: Key of the signature. May be left out where there is one, or one called
            `"serving_default"`.

    Attributes:
        inputs: Name → `TensorInfo` of every input.
        outputs: Name → `TensorInfo` of every output.
        signature: Key of the signature; `None` for a file without signatures, whose tensors
            then go by their own names.

    Raises:
        ValueError: If the file is not TFLite, is truncated or damaged, has no such signature, or
            has a fixed batch other than 1.
        UnusableFile: If the runtime refuses the file (Flex ops, for instance) or crashes on it: a
            `ValueError` and a `RuntimeError`. The file is loaded and run once in another process
            first, so that a damaged one cannot harm this one.
    """

    def __init__(
        self,
        path_or_bytes: PathOrBytes,
        *,
        num_threads: int = 1,
        signature: str | None = None,
    ):
        if not isinstance(num_threads, int) or num_threads < 1:
            raise ValueError(f"Expected num_threads of 1 or more. Received: {num_threads=}")
        data = read_tflite(path_or_bytes)
        source = "bytes"
        if isinstance(path_or_bytes, str | os.PathLike):
            source = repr(os.fspath(path_or_bytes))
        self.signature, subgraph = _choose_signature(data, signature)
        check_loads(data, source)
        try:
            self._load(data, num_threads, subgraph)
        except Exception as error:
            raise UnusableFile(
                f"Expected a .tflite that LiteRT can run. Received: {source}; LiteRT refuses to "
                f"load the file: {error}"
            ) from error
        for info in self.inputs.values():
            if not info.shape or info.shape[0] != 1:
                raise ValueError(
                    f"Expected inputs with a batch of 1. Received: input {info.name!r} of shape "
                    f"{info.shape}. Convert the model with a static batch of 1"
                )

    def _load(self, data: bytes, num_threads: int, subgraph: int) -> None:
        self._interpreter = Interpreter(model_content=data, num_threads=num_threads)
        self._interpreter.allocate_tensors()
        self._call = None
        if self.signature is None:
            inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
            outputs = {d["name"]: d for d in self._interpreter.get_output_details()}
        else:
            runner = self._interpreter.get_signature_runner(self.signature)
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
            # `invoke` runs the first subgraph only; another one needs the signature's runner.
            self._call = runner if subgraph else None
        codes = input_codes(data).get(self.signature or "", {})
        self.inputs = {
            name: _info(name, detail, codes.get(name)) for name, detail in inputs.items()
        }
        self.outputs = {name: _info(name, detail) for name, detail in outputs.items()}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order in which a list is taken."""
        return tuple(self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(self.outputs)

    def quantize(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns `x` as the input `name` takes it; integer arrays are taken as they are.

        Args:
            name: Name of an input.
            x: Array of any shape. Real values are quantized where the input is quantized.

        Raises:
            ValueError: If integers leave the range of the input's type, real values meet an
                input of plain integers, or `x` holds NaN.
        """
        info = _lookup(self.inputs, name, "input")
        x = np.asarray(x)
        if x.dtype == info.dtype:
            return x
        if info.dtype.kind == "f":
            return x.astype(info.dtype)
        if x.dtype.kind in "iub":
            return cast_integers(x, info)
        if info.is_quantized:
            return quantize(x, info.scale, info.zero_point, info.dtype)
        raise ValueError(
            f"Expected integers for the input {name!r} of type {info.dtype}, which has no scale. "
            f"Received: an array of {x.dtype}. Convert it yourself"
        )

    def run_codes(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Runs a batch and returns the raw outputs: integer codes, where quantized.

        Args:
            inputs: Arrays of shape `(n, …)`; see the class.

        Returns:
            Output name → array of shape `(n, …)` in the output's own type.

        Raises:
            ValueError: If names, shapes or batch sizes do not fit.
        """
        batch = {name: self.quantize(name, x) for name, x in self.by_name(inputs).items()}
        size = len(next(iter(batch.values())))
        results = {
            name: np.empty((size, *info.sample_shape), info.dtype)
            for name, info in self.outputs.items()
        }
        for i in range(size):
            outputs = self._run({n: x[i : i + 1] for n, x in batch.items()})
            for name, value in outputs.items():
                if value.size != results[name][i].size:
                    raise UnusableFile(
                        f"Expected the output {name!r} in shape {self.outputs[name].shape}, as the "
                        f"file says. Received: {value.shape}. The file is damaged, or the size "
                        "depends on the values of the input"
                    )
                results[name][i] = value.reshape(results[name].shape[1:])
        return results

    def predict(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Runs a batch and returns real values: `run_codes`, dequantized to float32.

        Outputs that are not quantized come in their own type.
        """
        return {
            name: dequantize(codes, self.outputs[name].scale, self.outputs[name].zero_point)
            if self.outputs[name].is_quantized
            else codes
            for name, codes in self.run_codes(inputs).items()
        }

    def time(self, runs: int = 100, warmup: int = 10, seed: int = 0) -> np.ndarray:
        """Returns the milliseconds of `runs` single runs, on random inputs.

        To compare files, use `compare_latency`: the speed of a shared machine drifts.
        """
        invoke = self.prepare_timing(seed)
        for _ in range(warmup):
            invoke()
        times = np.empty(runs)
        for i in range(runs):
            start = time.perf_counter()
            invoke()
            times[i] = time.perf_counter() - start
        return times * 1e3

    def prepare_timing(self, seed: int = 0) -> Callable[[], Any]:
        """Fills the inputs with random values and returns a function that runs them once.

        For a signature outside the first subgraph a run includes copying inputs and outputs.
        """
        rng = np.random.default_rng(seed)
        sample = {name: random_codes(info, 1, rng) for name, info in self.inputs.items()}
        call = self._call
        if call is not None:
            return lambda: call(**sample)
        self._run(sample)
        return self._interpreter.invoke

    def by_name(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Returns `inputs`, however they were passed, by name and with shapes checked.

        Raises:
            ValueError: If names, shapes or batch sizes do not fit.
        """
        if not isinstance(inputs, Mapping):
            arrays: list[Any] = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(arrays) != len(self.inputs):
                raise ValueError(
                    f"Expected {len(self.inputs)} inputs {self.input_names}. "
                    f"Received: {len(arrays)}. Pass a list in this order, or a dict by name"
                )
            inputs = dict(zip(self.inputs, arrays, strict=True))
        if set(inputs) != set(self.inputs):
            raise ValueError(
                f"Expected the inputs {sorted(self.inputs)}. Received: {sorted(inputs)}"
            )
        batch = {name: np.asarray(inputs[name]) for name in self.inputs}
        for name, array in batch.items():
            expected = self.inputs[name].sample_shape
            if array.ndim == 0 or array.shape[1:] != expected:
                raise ValueError(
                    f"Expected the input {name!r} in shape {('batch', *expected)}. "
                    f"Received: shape {array.shape}. One sample needs a batch axis too: x[None]"
                )
        sizes = {name: len(array) for name, array in batch.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"Expected inputs of one batch size. Received: {sizes}")
        return batch

    def _run(self, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            if self._call is not None:
                return self._call(**sample)
            for name, value in sample.items():
                self._interpreter.set_tensor(self.inputs[name].index, value)
            self._interpreter.invoke()
            # An output that no operator of a damaged file writes has no memory.
            get = self._interpreter.get_tensor
            return {name: get(info.index) for name, info in self.outputs.items()}
        except (RuntimeError, ValueError) as error:
            raise UnusableFile(
                f"Expected a .tflite that LiteRT can run. Received: an error in LiteRT: {error}"
            ) from error


def _choose_signature(data: bytes, key: str | None) -> tuple[str | None, int]:
    root = schema.Model.GetRootAs(data, 0)
    signatures = [root.SignatureDefs(i) for i in range(root.SignatureDefsLength())]
    keys = [(s.SignatureKey() or b"").decode("utf-8", "replace") for s in signatures]
    subgraphs = {k: s.SubgraphIndex() for k, s in zip(keys, signatures, strict=True)}
    if key is None:
        if not subgraphs:
            return None, 0
        key = "serving_default" if "serving_default" in subgraphs else None
        key = next(iter(subgraphs)) if len(subgraphs) == 1 else key
    if key not in subgraphs:
        raise ValueError(
            f"Expected one of the file's signatures {sorted(subgraphs)}. "
            f"Received: signature={key!r}. Name one of them"
        )
    return key, subgraphs[key]


def _info(name: str, detail: dict, codes: tuple[float, int] | None = None) -> TensorInfo:
    """An input or output; `codes` are scale and zero point where they are not the file's own."""
    scale, zero_point = codes or detail["quantization"]
    shape = tuple(int(d) for d in detail["shape"])
    dtype = np.dtype(detail["dtype"])
    return TensorInfo(name, int(detail["index"]), shape, dtype, float(scale), int(zero_point))


def _lookup(infos: Mapping[str, TensorInfo], name: str, kind: str) -> TensorInfo:
    if name not in infos:
        raise ValueError(f"Expected an {kind} name among {sorted(infos)}. Received: {name!r}")
    return infos[name]
